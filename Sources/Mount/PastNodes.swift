import Synchronization
import Volume

/// A state of the volume below `.delugefs/at`, as long as the kernel knows a node of it.
final class PastState: Sendable {
    let commit: ObjectID
    /// The commit's whole tree: two names for one tree lead to the same nodes.
    let id: ObjectID
    let tree: VolumeTree
    private let mask: UInt64

    init(_ state: PastSource.State, _ tree: VolumeTree) {
        commit = state.commit
        id = state.tree
        self.tree = tree
        mask = Self.mask(state.tree)
    }

    /// Inode numbers differ from the present's by bit 62, and from those of other states: else `cp` and
    /// `diff` take two versions of a file for the same file, and `tar` for two links of one.
    func shown(_ ino: InodeNumber) -> UInt64 { VirtualDirectory.bit | (ino.rawValue ^ mask) }

    static func top(of tree: ObjectID) -> UInt64 {
        VirtualDirectory.bit | (InodeNumber.root.rawValue ^ mask(tree))
    }

    /// Within a state no two numbers can become one.
    private static func mask(_ tree: ObjectID) -> UInt64 {
        tree.bytes.prefix(8).reduce(0) { $0 << 8 | UInt64($1) } >> 2
    }
}

/// One inode of a state as the kernel knows it. Nothing of it ever changes but who has it open.
final class PastNode: Sendable {
    /// Where its record is.
    enum Entry: Hashable, Sendable {
        case directory(ObjectID)
        case blob(ObjectID)
        /// It has several names.
        case shared(LineageID)
    }

    struct Key: Hashable, Sendable {
        let state: ObjectID
        let lineage: LineageID
    }

    let nodeid: UInt64
    let state: PastState
    let entry: Entry
    let ino: UInt64
    /// The inode number that `..` shows.
    let parent: UInt64
    /// Held until the answer to an OPEN is written, as a vnode's lock is: the kernel allows one mode.
    /// nil while nobody has it open.
    let file = Mutex<PastFile?>(nil)

    init(nodeid: UInt64, _ inode: PastInode, in state: PastState, parent: UInt64) {
        self.nodeid = nodeid
        self.state = state
        self.parent = parent
        entry = inode.entry
        ino = state.shown(inode.record.ino)
    }
}

/// Nodes that the kernel has looked up and not forgotten, and no others. A nodeid is given once and
/// never again.
final class LookupTable<Key: Hashable & Sendable, Node: Sendable>: Sendable {
    private struct Entry {
        let key: Key
        let node: Node
        var lookups: UInt64
    }

    private struct State {
        var entries: [UInt64: Entry] = [:]
        var numbers: [Key: UInt64] = [:]
        var next: UInt64
    }

    private let state: Mutex<State>

    init(from first: UInt64) { state = Mutex(State(next: first)) }

    func node(_ nodeid: UInt64) -> Node? { state.withLock { $0.entries[nodeid]?.node } }

    /// With one more lookup owed by the kernel.
    func lookUp(_ key: Key, _ make: (_ nodeid: UInt64) -> Node) -> Node {
        state.withLock { state in
            if let nodeid = state.numbers[key], var entry = state.entries[nodeid] {
                entry.lookups += 1
                state.entries[nodeid] = entry
                return entry.node
            }
            let node = make(state.next)
            state.entries[state.next] = Entry(key: key, node: node, lookups: 1)
            state.numbers[key] = state.next
            state.next += 1
            return node
        }
    }

    func forget(_ nodeid: UInt64, count: UInt64) {
        // Outside the lock: what goes with the node may be much.
        _ = state.withLock { state -> Entry? in
            guard var entry = state.entries[nodeid] else { return nil }
            entry.lookups -= min(entry.lookups, count)
            state.entries[nodeid] = entry.lookups > 0 ? entry : nil
            if entry.lookups == 0 { state.numbers[entry.key] = nil }
            return entry
        }
    }

    func forgetAll() { state.withLock { $0 = State(next: $0.next) } }
}

typealias PastNodes = LookupTable<PastNode.Key, PastNode>

extension PastNodes {
    /// - Parameter parent: the inode number that `..` shows.
    func lookUp(_ inode: PastInode, in state: PastState, parent: UInt64) -> PastNode {
        let key = PastNode.Key(state: state.id, lineage: inode.record.id)
        return lookUp(key) { PastNode(nodeid: $0, inode, in: state, parent: parent) }
    }
}
