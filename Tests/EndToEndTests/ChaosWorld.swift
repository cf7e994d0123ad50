import Glibc
import Simulation
import Synchronization

/// Five nodes on three machines, their writers and readers, and what befalls one machine at a time.
final class ChaosWorld: Sendable {
    enum Fault: CaseIterable, Sendable {
        case killMachine, killNode, cutOff, fill, spoil, stop, slow
    }

    struct Machine: Sendable {
        let host: Host
        let nodes: [NodeProcess]
        let disks: [Disk]
    }

    private static let graceSeconds = 3
    /// How long a fault lasts: shorter and longer than the grace time.
    private static let faultMilliseconds = 300...(Bounds.isLong ? 7000 : 2000)
    private static let spoiledMax = 12
    private static let slowMegabits = 20

    let machines: [Machine]
    let pool: BytePool
    let start = ContinuousClock.now
    private let random: Mutex<SeededGenerator>
    private let over = Atomic<Bool>(false)
    private let resting = Atomic<Bool>(false)
    /// Odd while something is wrong.
    private let troubles = Atomic<Int>(0)
    private let counts = Mutex<[String: Int]>([:])
    private let failures = Mutex<[String]>([])

    var nodes: [NodeProcess] { machines.flatMap(\.nodes) }
    var mounted: [NodeProcess] { nodes.filter { $0.mount != nil } }
    var isOver: Bool { over.load(ordering: .sequentiallyConsistent) || hasFailed }
    var rests: Bool { resting.load(ordering: .sequentiallyConsistent) }
    var hasFailed: Bool { failures.withLock { !$0.isEmpty } }

    init(_ workshop: Workshop, seed: UInt64) async throws {
        pool = BytePool(seed: seed)
        random = Mutex(SeededGenerator(seed: seed))
        let network = try await Network(workshop)
        let plan: [[(name: String, kind: Disk.Kind, isMounted: Bool)]] = [
            [("a", .xfs(megabytes: 1500), true), ("b", .ext4(megabytes: 700), false)],
            [("c", .ext4(megabytes: 1000), true), ("d", .ext4(megabytes: 3000), false)],
            [("e", .ext4(megabytes: 1200), true)],
        ]
        var machines: [Machine] = []
        for (number, disks) in plan.enumerated() {
            let host = try await network.host()
            var machine: [(NodeProcess, Disk)] = []
            for (name, kind, isMounted) in disks {
                let disk = try await Disk(workshop, name, kind)
                let node = try NodeProcess(
                    name, on: host, disk: disk, isMounted: isMounted, home: "m\(number)",
                    options: ["--machine", "m\(number)", "--grace", "\(Self.graceSeconds)"])
                machine.append((node, disk))
            }
            machines.append(
                Machine(host: host, nodes: machine.map(\.0), disks: machine.map(\.1)))
        }
        self.machines = machines
    }

    func found() async throws {
        try await nodes[0].create()
        for machine in machines {
            for (index, node) in machine.nodes.enumerated() where node.name != nodes[0].name {
                // The key is kept for the user of a machine.
                if index > 0 { try await node.start() } else { try await node.join(nodes[0]) }
            }
        }
        try await waitForAll()
    }

    func waitForAll() async throws {
        let names = Set(nodes.map(\.name))
        for node in nodes {
            try await node.waitForPeers(names.subtracting([node.name]), within: Bounds.offline)
        }
    }

    // MARK: What is seen

    /// A mark of this moment if nothing is wrong.
    var calm: Int? {
        let count = troubles.load(ordering: .sequentiallyConsistent)
        return count % 2 == 0 ? count : nil
    }

    func isCalm(since mark: Int?) -> Bool { mark != nil && mark == calm }

    func say(_ text: String) { print("\(ContinuousClock.now - start): \(text)") }

    func fail(_ text: String) {
        say("WRONG: \(text)")
        failures.withLock { $0.append(text) }
    }

    /// Counts what came of something, and of an error whether there was a reason for it.
    ///
    /// - Parameter calm: of the moment when it began; nil: no error.
    func tally(_ what: String, of node: NodeProcess, calm: Int?) {
        counts.withLock { $0["\(node.name) \(what)", default: 0] += 1 }
        if isCalm(since: calm) { fail("\(node.name) said `\(what)` while nothing was wrong.") }
    }

    func report() throws {
        for (what, count) in counts.withLock({ $0 }).sorted(by: { $0.key < $1.key }) {
            print("\(count) x \(what)")
        }
        let failures = failures.withLock { $0 }
        if let first = failures.first { throw Failure(first) }
    }

    // MARK: What befalls them

    /// One after another until the time is over, each at least once.
    func run(_ writers: [ChaosWriter], for duration: Duration) async throws {
        defer { over.store(true, ordering: .sequentiallyConsistent) }
        do { try await runFaults(writers, for: duration) } catch {
            // Who waits for one of them would wait for ever.
            over.store(true, ordering: .sequentiallyConsistent)
            troubles.store(1, ordering: .sequentiallyConsistent)
            for node in nodes { try await node.kill9() }
            throw error
        }
    }

    private func runFaults(_ writers: [ChaosWriter], for duration: Duration) async throws {
        var deck: [Fault] = []
        var count = 0
        while !hasFailed, !Task.isCancelled,
            count < Fault.allCases.count || ContinuousClock.now - start < duration
        {
            if deck.isEmpty { deck = draw { Fault.allCases.shuffled(using: &$0) } }
            try await round(deck.removeLast(), writers)
            count += 1
        }
    }

    private func draw<Value: Sendable>(_ body: @Sendable (inout SeededGenerator) -> Value) -> Value
    {
        random.withLock { body(&$0) }
    }

    private func round(_ fault: Fault, _ writers: [ChaosWriter]) async throws {
        let able = fault == .spoil ? machines.filter { $0.nodes.count > 1 } : machines
        let machine = draw { $0.pick(able) }
        let node = draw { $0.pick(machine.nodes) }
        let pause = draw { Int.random(in: Self.faultMilliseconds, using: &$0) }
        let rests = fault == .spoil || draw { $0.once(in: 3) }
        say("\(fault) of \(node.name)'s machine for \(pause) ms")
        troubles.wrappingAdd(1, ordering: .sequentiallyConsistent)
        switch fault {
        case .killMachine: for node in machine.nodes { try await node.kill9() }
        case .killNode: try await node.kill9()
        case .cutOff: try await machine.host.cutOff()
        case .fill: try await fill(machine, node)
        case .spoil: try await spoil(machine)
        case .stop: try await node.stop()
        case .slow: try await machine.host.throttle(megabitsPerSecond: Self.slowMegabits)
        }
        try await Task.sleep(for: .milliseconds(pause))
        switch fault {
        case .killMachine, .killNode, .stop:
            for node in machine.nodes where !node.isRunning { try await node.start() }
        case .cutOff: try await machine.host.heal()
        case .fill: try await machine.host.sh("rm -f \"$1\"/ballast", disk(machine, node).path)
        case .spoil:
            for node in machine.nodes where node.mount == nil {
                try await node.command("scrub", "--wait", timeout: Bounds.replicated).succeeded()
            }
        case .slow: try await machine.host.unthrottle()
        }
        try await waitForAll()
        troubles.wrappingAdd(1, ordering: .sequentiallyConsistent)
        if rests { try await rest(writers, nextTo: machine) }
    }

    /// Nobody writes until all copies are made.
    private func rest(_ writers: [ChaosWriter], nextTo machine: Machine) async throws {
        resting.store(true, ordering: .sequentiallyConsistent)
        defer { resting.store(false, ordering: .sequentiallyConsistent) }
        try await eventually("the writers rest", within: Bounds.starvedRead) {
            writers.allSatisfy(\.rests) || hasFailed
        }
        let others = mounted.filter { node in !machine.nodes.contains { $0.name == node.name } }
        let node = draw { $0.pick(others) }
        try await node.waitReplicated()
        say("all copies are made, says \(node.name)")
    }

    private func disk(_ machine: Machine, _ node: NodeProcess) throws -> Disk {
        for (other, disk) in zip(machine.nodes, machine.disks) where other.name == node.name {
            return disk
        }
        throw Failure("\(node.name) has no disk.")
    }

    private func fill(_ machine: Machine, _ node: NodeProcess) async throws {
        try await machine.host.sh(
            """
            cd "$1"
            fallocate -l $(df --output=avail -B1K . | tail -1 | tr -d ' ')K ballast 2>/dev/null ||
                cat /dev/zero >ballast 2>/dev/null || true
            """, disk(machine, node).path
        ).succeeded()
    }

    /// Removes, cuts or changes objects that another machine has too, on disks without a mount: the
    /// kernel reads objects of its own disk unchecked.
    private func spoil(_ machine: Machine) async throws {
        let others = machines.filter { $0.host.number != machine.host.number }.flatMap(\.nodes)
        let seed = draw { $0.next() }
        for node in machine.nodes where node.mount == nil {
            let script =
                """
                root=$1 count=$2 seed=$3; shift 3
                cd "$root"/objects
                find . -type f -size +0 -printf '%P %s\n' | sort |
                    shuf --random-source=<(yes $seed 2>/dev/null) -n $count |
                while read -r object size; do
                    for other; do
                        cmp -s $object "$other"/objects/$object || continue
                        chmod u+w $object
                        case $((size % 3)) in
                        0) rm $object; echo "removed $object" ;;
                        1) truncate -s $((size / 2)) $object; echo "cut $object" ;;
                        2) head -c 8 /dev/urandom |
                            dd of=$object bs=8 seek=$((size / 16)) conv=notrunc status=none
                            echo "changed $object" ;;
                        esac
                        break
                    done
                done
                """
            let arguments = [node.root, "\(Self.spoiledMax)", "\(seed)"] + others.map(\.root)
            let outcome = try await machine.host.run(Shell.bash(script, arguments)).succeeded()
            say("spoiled on \(node.name): \(outcome.output.split(separator: "\n"))")
        }
    }
}

extension SeededGenerator {
    mutating func pick<Value>(_ values: [Value]) -> Value {
        values[Int.random(in: values.indices, using: &self)]
    }
}
