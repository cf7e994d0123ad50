import Testing

@Suite("Swift text is taken apart")
struct SwiftTextTests {
    @Test("strings and comments are not code")
    func stringsAndCommentsAreBlank() {
        let text = SwiftText(
            ##"""
            let a = "x \(call("}")) {" // note {
            let b = #"raw "{" \#(inner)"#
            /* one /* two { */ */ let c = '{'
            """##)
        let code = text.code.map { String(decoding: $0, as: UTF8.self) }
        #expect(!code[0].contains("call") && !code[0].contains("{") && code[0].contains("let a"))
        #expect(!code[1].contains("inner") && !code[1].contains("{"))
        #expect(code[2].contains("let c"))
        #expect(text.commented == [0, 2])
    }

    @Test("a function's length counts from its name to its brace")
    func functionLengths() {
        let functions = SwiftText(
            """
            protocol P { func none(_ body: () -> Void) -> Int
                init() }
            struct S {
                func outer(
                    _ body: () -> Void = {}
                ) {
                    func inner() {}
                    S.init()
                }
                init?(a: Int) { return nil }
            }
            """
        ).functions
        #expect(functions.map(\.name) == ["outer", "inner", "init"])
        #expect(functions.map(\.length) == [6, 1, 1])
    }

    @Test("imports are found with and without access levels")
    func imports() {
        let text = SwiftText(
            """
            import A
            public import B
            @testable import C
            internal import struct D.E
            // import F
            """)
        #expect(text.imports.map(\.module) == ["A", "B", "C", "D"])
    }
}
