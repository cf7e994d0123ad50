import Glibc

/// Where the random tests take their seeds from: always the same few, so that a failure is one of
/// the change under test; in long runs (`make test-long`) many from a start that is drawn anew.
enum Seeds {
    static let longFactor = 20

    /// `DELUGEFS_TEST_SEED` of a long run, else nil.
    private static let longStart: UInt64? = {
        guard getenv("DELUGEFS_TEST_LONG") != nil else { return nil }
        let text = getenv("DELUGEFS_TEST_SEED").map { String(cString: $0) }
        return text.flatMap { UInt64($0) } ?? 0
    }()

    static var isLong: Bool { longStart != nil }

    /// - Parameter long: how many in a long run; nil: the usual number times `longFactor`.
    static func range(_ usual: Range<UInt64>, long: Int? = nil) -> Range<UInt64> {
        guard let start = longStart else { return usual }
        return start..<start + UInt64(long ?? usual.count * longFactor)
    }
}
