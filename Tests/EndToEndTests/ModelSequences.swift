/// Sequences that once came out otherwise than on ext4.
enum ModelSequences {
    static let all: [(name: String, operations: [ModelOperation])] = [
        (
            "What was written stays when the file is opened for writing while it is published",
            reopened
        )
    ]

    /// The row has an older version until the object stands; when that is differs.
    private static let reopened = (0..<20).flatMap { number -> [ModelOperation] in
        let path = "f\(number)"
        return [
            .init(0, .open(slot: 0, path: path, flags: [.create, .write], mode: 0o644)),
            .init(0, .write(slot: 0, count: 100, fill: 1)),
            .init(0, .close(slot: 0)),
            .init(0, .pause(milliseconds: 20)),
            .init(0, .setTimes(path: path, accessed: 1, modified: 2)),
            .init(0, .open(slot: 0, path: path, flags: [.write, .truncate], mode: 0)),
            .init(0, .write(slot: 0, count: 10_000 + number, fill: 3)),
            .init(0, .close(slot: 0)),
            .init(0, .pause(milliseconds: 198 + UInt32(number))),
            .init(0, .open(slot: 0, path: path, flags: [.write, .append], mode: 0)),
            .init(0, .statusOpen(slot: 0)),
            .init(0, .close(slot: 0)),
        ]
    }
}
