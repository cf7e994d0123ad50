import Synchronization
import Volume

/// All vnodes: by nodeid for the kernel, by inode number for names.
///
/// A nodeid is given once and never again. A vnode lives while the kernel has looked it up or a
/// descriptor or the publisher holds it. An inode has one current vnode, and superseded ones while
/// descriptors of older versions are open.
final class VnodeTable: Sendable {
    /// The vnodes of one inode. The kernel may know millions.
    private struct Family {
        /// A nodeid; none is 0.
        var current: UInt64 = 0
        var members: UInt32 = 0
        /// No name leads to the inode: it goes with its last vnode.
        var isUnlinked = false
    }

    private struct State {
        var nodes: [UInt64: Vnode] = [:]
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
        (root.lookups, root.pins) = (1, 1)
        initial.nodes[Self.rootNode] = root
        initial.families[.root] = Family(current: Self.rootNode, members: 1)
        state = Mutex(initial)
    }

    func vnode(_ nodeid: UInt64) -> Vnode? {
        state.withLock { $0.nodes[nodeid] }
    }

    /// The vnode that the inode's names lead to.
    func current(_ ino: InodeNumber) -> Vnode? {
        state.withLock { state in
            state.families[ino].flatMap { state.nodes[$0.current] }
        }
    }

    /// The vnode a name leads to, with one more lookup owed by the kernel.
    func lookUp(_ ino: InodeNumber) -> Vnode { reference(ino) { $0.lookups += 1 } }

    /// The vnode, kept alive until `unpin`.
    func pin(_ ino: InodeNumber) -> Vnode { reference(ino) { $0.pins += 1 } }

    /// - Precondition: something else keeps the vnode alive.
    func pin(_ vnode: Vnode) {
        state.withLock { _ in vnode.pins += 1 }
    }

    /// - Returns: true when nothing holds the inode any more and no name leads to it: reap it.
    func unpin(_ vnode: Vnode) -> Bool {
        release(vnode.nodeid) { vnode in
            precondition(vnode.pins > 0, "a vnode was unpinned once too often")
            vnode.pins -= 1
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
                state.families[vnode.ino]?.current = 0
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

    var all: [Vnode] { state.withLock { Array($0.nodes.values) } }

    /// Whether there is a vnode of the inode, of an older version perhaps.
    func holds(_ ino: InodeNumber) -> Bool { state.withLock { $0.families[ino] != nil } }

    private func reference(_ ino: InodeNumber, _ count: (Vnode) -> Void) -> Vnode {
        state.withLock { state in
            let known = state.families[ino].flatMap { state.nodes[$0.current] }
            let vnode = known ?? Vnode(nodeid: state.next, ino: ino, recorded: recorded)
            if known == nil {
                state.nodes[vnode.nodeid] = vnode
                state.next += 1
                var family = state.families[ino] ?? Family()
                family.current = vnode.nodeid
                family.members += 1
                state.families[ino] = family
            }
            count(vnode)
            return vnode
        }
    }

    private func release(_ nodeid: UInt64, _ count: (Vnode) -> Void) -> Bool {
        state.withLock { state in
            guard let vnode = state.nodes[nodeid] else { return false }
            count(vnode)
            guard vnode.lookups == 0, vnode.pins == 0 else { return false }
            state.nodes[nodeid] = nil
            guard var family = state.families[vnode.ino] else { return false }
            family.members -= 1
            if family.current == nodeid { family.current = 0 }
            state.families[vnode.ino] = family.members > 0 ? family : nil
            return family.members == 0 && family.isUnlinked
        }
    }
}
