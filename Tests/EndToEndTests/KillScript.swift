/// Every kind of change that a program makes, on files of all the ways to keep content. What comes
/// between pauses is met unpublished, the rest published.
enum KillScript {
    static let operations: [ModelOperation] =
        (creations + pause + names + pause + changes + pause + copies + replacements + pause
        + removals).map { ModelOperation(0, $0) }

    private static let pause: [ModelOperation.Call] = [
        .pause(milliseconds: 3), .pause(milliseconds: 60),
    ]

    private static let creations: [ModelOperation.Call] = [
        .makeDirectory(path: "d", mode: 0o755),
        .makeDirectory(path: "d/e", mode: 0o2755),
        .open(slot: 0, path: "inline", flags: [.create, .write], mode: 0o644),
        .write(slot: 0, count: 100, fill: 1),
        .close(slot: 0),
        .open(slot: 0, path: "object", flags: [.create, .write], mode: 0o600),
        .write(slot: 0, count: 10_000, fill: 2),
        .write(slot: 0, count: 4097, fill: 3),
        .close(slot: 0),
        .open(slot: 0, path: "large", flags: [.create, .readWrite], mode: 0o644),
        .write(slot: 0, count: 200_000, fill: 1),
        .writeAt(slot: 0, offset: 65_536, count: 1000, fill: 3),
        .synchronize(slot: 0, dataOnly: false),
        .writeAt(slot: 0, offset: 300_000, count: 10, fill: 2),
        .close(slot: 0),
        .open(slot: 0, path: ".", flags: [.temporary, .directory, .readWrite], mode: 0o640),
        .write(slot: 0, count: 8192, fill: 1),
        .linkOpen(slot: 0, path: "d/linked"),
        .close(slot: 0),
        .symlink(path: "symlink", target: "d/linked"),
        .makeNode(path: "pipe", mode: 0o10644),
        .makeNode(path: "d/node", mode: 0o100644),
    ]

    private static let names: [ModelOperation.Call] = [
        .rename(path: "inline", to: "d/inline", flags: 0),
        .link(path: "object", to: "d/second"),
        .open(slot: 1, path: "new", flags: [.create, .exclusive, .write], mode: 0o644),
        .write(slot: 1, count: 70_001, fill: 1),
        .synchronize(slot: 1, dataOnly: true),
        .close(slot: 1),
        .rename(path: "new", to: "object", flags: 0),
        .rename(path: "d", to: "renamed", flags: 0),
        .rename(path: "large", to: "renamed/linked", flags: 2),
        .makeDirectory(path: "gone", mode: 0o700),
        .removeDirectory(path: "gone"),
        .setXattr(path: "large", name: "user.one", count: 100, fill: 1, flags: 0),
        .setXattr(path: "renamed/e", name: "user.two", count: 2000, fill: 2, flags: 1),
        .removeXattr(path: "large", name: "user.one"),
        .changeMode(path: "object", mode: 0o400),
        .changeOwner(path: "renamed/linked", uid: 1000, gid: 1001),
        .setTimes(path: "renamed/linked", accessed: 3, modified: 5),
    ]

    private static let changes: [ModelOperation.Call] = [
        .open(slot: 0, path: "renamed/inline", flags: [.write, .append], mode: 0),
        .write(slot: 0, count: 10, fill: 2),
        .write(slot: 0, count: 5000, fill: 2),
        .close(slot: 0),
        .open(slot: 0, path: "object", flags: [], mode: 0),
        .open(slot: 1, path: "object", flags: [.readWrite], mode: 0),
        .writeAt(slot: 1, offset: 100, count: 4096, fill: 3),
        .truncateOpen(slot: 1, size: 50_000),
        .readAt(slot: 0, offset: 0, count: 100_000),
        .close(slot: 1),
        .close(slot: 0),
        .open(slot: 2, path: "renamed/linked", flags: [.readWrite], mode: 0),
        .map(slot: 2, mapping: 0, count: 100_000),
        .store(mapping: 0, offset: 5000, count: 3000, fill: 2),
        .close(slot: 2),
        .store(mapping: 0, offset: 70_000, count: 1, fill: 3),
        .unmap(mapping: 0),
        .truncate(path: "renamed/second", size: 5000),
        .truncate(path: "large", size: 0),
        .changeMode(path: "renamed/second", mode: 0o644),
    ]

    private static let copies: [ModelOperation.Call] = [
        .open(slot: 0, path: "renamed/linked", flags: [], mode: 0),
        .open(slot: 1, path: "copy", flags: [.create, .readWrite], mode: 0o644),
        .copy(from: 0, at: -1, to: 1, target: -1, count: 1 << 20),
        .allocate(slot: 1, mode: 0x03, offset: 4096, length: 20_000),
        .allocate(slot: 1, mode: 0, offset: 300_000, length: 50_000),
        .close(slot: 1),
        .close(slot: 0),
        .open(slot: 1, path: "copy", flags: [.readWrite], mode: 0),
        .allocate(slot: 1, mode: 0x10, offset: 60_000, length: 30_000),
        .close(slot: 1),
    ]

    private static let replacements: [ModelOperation.Call] = [
        .open(slot: 0, path: "object", flags: [.write, .truncate], mode: 0),
        .write(slot: 0, count: 65_536, fill: 2),
        .close(slot: 0),
        .open(slot: 0, path: "temporary", flags: [.create, .exclusive, .write], mode: 0o600),
        .write(slot: 0, count: 50, fill: 3),
        .changeModeOpen(slot: 0, mode: 0o755),
        .close(slot: 0),
        .rename(path: "temporary", to: "renamed/inline", flags: 0),
        .open(slot: 0, path: "open", flags: [.create, .readWrite], mode: 0o644),
        .write(slot: 0, count: 10_000, fill: 1),
        .unlink(path: "open"),
        .write(slot: 0, count: 10_000, fill: 2),
        .readAt(slot: 0, offset: 0, count: 20_000),
        .close(slot: 0),
    ]

    private static let removals: [ModelOperation.Call] = [
        .unlink(path: "renamed/second"),
        .unlink(path: "symlink"),
        .rename(path: "copy", to: "object", flags: 0),
        .removeDirectory(path: "renamed/e"),
        .unlink(path: "pipe"),
        .pause(milliseconds: 30),
    ]
}
