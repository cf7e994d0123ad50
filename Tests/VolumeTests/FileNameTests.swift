import Testing
import Volume

@Test("A file name is 1 to 255 bytes without slash or NUL, and neither dot nor dot-dot")
func fileNameValidation() {
    #expect(FileName("") == nil)
    #expect(FileName(".") == nil)
    #expect(FileName("..") == nil)
    #expect(FileName("a/b") == nil)
    #expect(FileName([0x61, 0]) == nil)
    #expect(FileName([UInt8](repeating: 0xFF, count: 256)) == nil)
    #expect(FileName([UInt8](repeating: 0xFF, count: 255)) != nil)
    #expect(FileName("...") != nil)
}

@Test("Names that are canonically equivalent as text stay two names")
func fileNameBytes() {
    #expect(FileName("\u{e9}") != FileName("e\u{301}"))
}
