import Glibc
import Simulation
import Synchronization

/// Makes, changes and removes files of its own directory on one mount, and looks after each step
/// whether they are what it made.
final class ChaosWriter: Sendable {
    private static let filesMax = 40
    /// Up to 4 KiB is kept in the catalog.
    private static let sizes = [40, 3000, 4097, 20_000, 150_000, 700_000, 2_500_000]
    private static let editBytesMax = 40_000
    private static let pauseMillisecondsMax = 60
    /// After something that failed: a node that is down answers at once.
    private static let failurePause = Duration.milliseconds(150)
    private static let operationsPerWait = 30
    private static let waitSeconds = 10

    let node: NodeProcess
    let model: ChaosModel
    private let world: ChaosWorld
    private let random: Mutex<SeededGenerator>
    private let number = Atomic<Int>(0)
    private let isIdle = Atomic<Bool>(false)

    init(_ world: ChaosWorld, _ node: NodeProcess, seed: UInt64) {
        self.world = world
        self.node = node
        model = ChaosModel("of-\(node.name)", world.pool)
        random = Mutex(SeededGenerator(seed: seed))
    }

    /// Whether it has noticed that the world rests.
    var rests: Bool { isIdle.load(ordering: .sequentiallyConsistent) }

    func run() async throws {
        while !world.isOver, !Task.isCancelled {
            isIdle.store(world.rests, ordering: .sequentiallyConsistent)
            if world.rests {
                try await Task.sleep(for: Bounds.poll)
                continue
            }
            let calm = world.calm
            do {
                try await onThread { try self.step() }
            } catch let failed as Calls.Failed {
                world.tally("\(failed)", of: node, calm: calm)
                try await Task.sleep(for: Self.failurePause)
            }
            let count = number.wrappingAdd(1, ordering: .relaxed).oldValue
            if count % Self.operationsPerWait == Self.operationsPerWait - 1 { try await wait() }
            let pause = draw { Int.random(in: 0...Self.pauseMillisecondsMax, using: &$0) }
            try await Task.sleep(for: .milliseconds(pause))
        }
        isIdle.store(true, ordering: .sequentiallyConsistent)
    }

    /// Everything is closed: if it succeeds, all that is there is acknowledged.
    private func wait() async throws {
        let outcome = try await node.command(
            "wait", "--replicated", "--timeout", "\(Self.waitSeconds)")
        if outcome.isSuccess { model.acknowledge() }
        world.tally("wait: \(outcome.status)", of: node, calm: nil)
    }

    private func draw<Value: Sendable>(_ body: @Sendable (inout SeededGenerator) -> Value) -> Value
    {
        random.withLock { body(&$0) }
    }

    private func path(_ name: String) -> String { node["\(model.directory)/\(name)"] }

    // MARK: Steps

    private func step() throws {
        let calm = world.calm
        let names = model.presentNames
        let known = names.isEmpty ? nil : draw { $0.pick(names) }
        let new = "\(draw { Int.random(in: 0..<Self.filesMax, using: &$0) })"
        guard model.isCertain(new) else { return try settle(new, calm) }
        guard let known else { return try write(new) }
        guard model.isCertain(known) else { return try settle(known, calm) }
        switch draw({ Int.random(in: 0..<20, using: &$0) }) {
        case 0..<5: try write(new)
        case 5..<10: try replace(new)
        case 10..<14: try edit(known)
        case 14: try rename(known, new)
        case 15, 16: try remove(known)
        default: try settle(known, calm)
        }
    }

    private func drawnContent() -> DrawnContent {
        draw { random in
            let size = random.pick(Self.sizes)
            return DrawnContent(count: Int.random(in: size / 2...size, using: &random), &random)
        }
    }

    static func isTemporary(_ name: String) -> Bool { name.contains(".") }

    private func isSynced() -> Bool { draw { $0.once(in: 4) } }

    private func write(_ name: String) throws {
        let content = drawnContent()
        model.begin(name, content, isInPlace: true)
        try Calls.write(content.bytes(model.pool), to: path(name), isSynced: isSynced())
        model.answered(name)
    }

    /// As editors save.
    private func replace(_ name: String) throws {
        let content = drawnContent()
        let temporary = "\(name).new-\(number.load(ordering: .relaxed))"
        model.begin(temporary, content, isInPlace: true)
        try Calls.write(content.bytes(model.pool), to: path(temporary), isSynced: isSynced())
        model.answered(temporary)
        model.begin(name, content)
        model.begin(temporary, nil)
        try Calls.rename(path(temporary), to: path(name))
        model.answered(name)
        model.answered(temporary)
    }

    private func edit(_ name: String) throws {
        guard let before = model.content(name) else { return try write(name) }
        let count = draw { Int.random(in: 1...Self.editBytesMax, using: &$0) }
        let position = draw { Int.random(in: 0...before.count, using: &$0) }
        let content = draw { random in
            var content = before
            content.write(count: count, at: position, &random)
            return content
        }
        model.begin(name, content, isInPlace: true)
        let bytes = content.bytes(model.pool)[position..<position + count]
        try Calls.edit(path(name), bytes, at: position, isSynced: isSynced())
        model.answered(name)
    }

    private func rename(_ name: String, _ other: String) throws {
        guard name != other, model.content(name) != nil else { return }
        model.beginRename(name, other)
        try Calls.rename(path(name), to: path(other))
        model.answered(other)
        model.answered(name)
    }

    private func remove(_ name: String) throws {
        guard model.content(name) != nil else { return }
        model.begin(name, nil)
        try Calls.unlink(path(name))
        model.answered(name)
    }

    /// Reads one of its own files: there must be what was made last.
    private func settle(_ name: String, _ calm: Int?) throws {
        let read = try Calls.read(path(name))
        // Nothing is mounted while a node is stopped.
        if read == nil, !world.isCalm(since: calm) { return }
        switch model.match(name, read, .now) {
        case .of(let content): if !model.isCertain(name) { model.settle(name, content) }
        case .wrong(let story): world.fail("on \(node.name), which wrote it: \(story)")
        }
    }
}

/// Reads what others write.
struct ChaosReader: Sendable {
    private static let pause = Duration.milliseconds(40)

    let world: ChaosWorld
    let node: NodeProcess
    let models: [ChaosModel]
    let seed: UInt64

    func run() async throws {
        var random = SeededGenerator(seed: seed)
        while !world.isOver, !Task.isCancelled {
            try await Task.sleep(for: Self.pause)
            let model = random.pick(models)
            let names = model.names.filter { !ChaosWriter.isTemporary($0) }
            guard !names.isEmpty else { continue }
            let name = random.pick(names)
            let calm = world.calm
            do {
                let path = node["\(model.directory)/\(name)"]
                let read = try await onThread { try Calls.read(path) }
                if case .wrong(let story) = model.match(name, read, .ever) {
                    world.fail("read on \(node.name): \(story)")
                }
                world.tally(read == nil ? "not there" : "read", of: node, calm: nil)
            } catch let failed as Calls.Failed {
                world.tally("\(failed)", of: node, calm: calm)
                try await Task.sleep(for: Self.pause)
            }
        }
    }
}
