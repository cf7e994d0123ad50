import Synchronization
import Volume

/// All vnodes: by nodeid for the kernel, by inode number for names.
///
/// A nodeid is given once and never again. A vnode lives while the kernel has looked it up or a
/// descriptor or the publisher holds it. An inode has one current vnode, and superseded ones while
/// descriptors of older versions are open.
final class VnodeTable: Sendable {
    private struct Entry {
        let vnode: Vnode
        var lookups: UInt64
        var pins: Int
    }

    /// The vnodes of one inode.
    private struct Family {
        var current: UInt64?
        var members = 0
        /// No name leads to the inode: it goes with its last vnode.
        var isUnlinked = false
    }

    private struct State {
        var nodes: [UInt64: Entry] = [:]
        var families: [InodeNumber: Family] = [:]
        var next: UInt64 = VnodeTable.rootNode + 1
    }

    private let state: Mutex<State>
    private let recordings = Atomic<UInt64>(0)

    /// The kernel's nodeid of the mount's top.
    static let rootNode: UInt64 = 1

    init() {
        var initial = State()
        let root = Vnode(nodeid: Self.rootNode, ino: .root, recorded: 0)
        initial.nodes[Self.rootNode] = Entry(vnode: root, lookups: 1, pins: 1)
        initial.families[.root] = Family(current: Self.rootNode, members: 1)
        state = Mutex(initial)
    }

    func vnode(_ nodeid: UInt64) -> Vnode? {
        state.withLock { $0.nodes[nodeid]?.vnode }
    }

    /// The vnode that the inode's names lead to.
    func current(_ ino: InodeNumber) -> Vnode? {
        state.withLock { state in
            state.families[ino]?.current.flatMap { state.nodes[$0]?.vnode }
        }
    }

    /// The vnode a name leads to, with one more lookup owed by the kernel.
    func lookUp(_ ino: InodeNumber) -> Vnode { reference(ino) { $0.lookups += 1 } }

    /// The vnode, kept alive until `unpin`.
    func pin(_ ino: InodeNumber) -> Vnode { reference(ino) { $0.pins += 1 } }

    /// - Precondition: something else keeps the vnode alive.
    func pin(_ vnode: Vnode) {
        state.withLock { $0.nodes[vnode.nodeid]?.pins += 1 }
    }

    /// - Returns: true when nothing holds the inode any more and no name leads to it: reap it.
    func unpin(_ vnode: Vnode) -> Bool {
        release(vnode.nodeid) { entry in
            precondition(entry.pins > 0, "a vnode was unpinned once too often")
            entry.pins -= 1
        }
    }

    /// - Returns: the vnode when nothing holds its inode any more and no name leads to it: reap it.
    func forget(_ nodeid: UInt64, count: UInt64) -> Vnode? {
        guard nodeid != Self.rootNode, let vnode = vnode(nodeid) else { return nil }
        return release(nodeid) { $0.lookups -= min($0.lookups, count) } ? vnode : nil
    }

    /// What the kernel has looked up.
    var known: [UInt64] { state.withLock { $0.nodes.filter { $1.lookups > 0 }.map(\.key) } }

    /// From now on the inode's names lead to a new vnode.
    func supersede(_ vnode: Vnode) {
        state.withLock { state in
            if state.families[vnode.ino]?.current == vnode.nodeid {
                state.families[vnode.ino]?.current = nil
            }
        }
    }

    /// The inode lost its last name.
    /// - Returns: true when nothing holds it: reap it now.
    func unlinked(_ ino: InodeNumber) -> Bool {
        state.withLock { state in
            if state.families[ino] == nil { return true }
            state.families[ino]?.isUnlinked = true
            return false
        }
    }

    /// The inode has a name.
    /// - Returns: whether it had none for a while.
    @discardableResult
    func linked(_ ino: InodeNumber) -> Bool {
        state.withLock { state in
            let wasUnlinked = state.families[ino]?.isUnlinked == true
            if wasUnlinked { state.families[ino]?.isUnlinked = false }
            return wasUnlinked
        }
    }

    // MARK: What publishing changes

    /// Taken before a row is read: the row is older than its vnode's state if the vnode was recorded
    /// since.
    var recorded: UInt64 { recordings.load(ordering: .sequentiallyConsistent) }

    /// Publishing has changed the vnode's row. Under its lock.
    func record(_ vnode: Vnode) {
        vnode.state.recorded =
            recordings.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
    }

    var all: [Vnode] { state.withLock { $0.nodes.values.map(\.vnode) } }

    /// Whether there is a vnode of the inode, of an older version perhaps.
    func holds(_ ino: InodeNumber) -> Bool { state.withLock { $0.families[ino] != nil } }

    private func reference(_ ino: InodeNumber, _ count: (inout Entry) -> Void) -> Vnode {
        state.withLock { state in
            var family = state.families[ino] ?? Family()
            let nodeid = family.current ?? state.next
            if family.current == nil {
                state.next += 1
                family.current = nodeid
                family.members += 1
                state.families[ino] = family
            }
            var entry =
                state.nodes[nodeid]
                ?? Entry(
                    vnode: Vnode(nodeid: nodeid, ino: ino, recorded: recorded), lookups: 0, pins: 0)
            count(&entry)
            state.nodes[nodeid] = entry
            return entry.vnode
        }
    }

    private func release(_ nodeid: UInt64, _ count: (inout Entry) -> Void) -> Bool {
        state.withLock { state in
            guard var entry = state.nodes[nodeid] else { return false }
            count(&entry)
            guard entry.lookups == 0, entry.pins == 0 else {
                state.nodes[nodeid] = entry
                return false
            }
            state.nodes[nodeid] = nil
            let ino = entry.vnode.ino
            guard var family = state.families[ino] else { return false }
            family.members -= 1
            if family.current == nodeid { family.current = nil }
            state.families[ino] = family.members > 0 ? family : nil
            return family.members == 0 && family.isUnlinked
        }
    }
}
