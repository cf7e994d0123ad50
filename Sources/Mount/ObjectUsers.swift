import Store
import Synchronization
import Volume

/// Which nodes read the file of an object, those of the past among them: the kernel for them, by
/// passthrough, or the daemon. A
/// writer takes the file away from under the readers that the kernel serves (the object's name gets a
/// copy), so its vnode must be the only one that uses it.
final class ObjectUsers: Sendable {
    private struct Users {
        /// The kernel reads it for these.
        var backed: Set<UInt64> = []
        /// How often the daemon uses it for these.
        var uses: [UInt64: Int] = [:]

        func others(than nodeid: UInt64) -> Bool {
            !backed.isSubset(of: [nodeid]) || uses.keys.contains { $0 != nodeid }
        }
    }

    private let users = Mutex<[ContentRoot: Users]>([:])

    // MARK: The kernel

    /// - Returns: false when the object backs another vnode: this one is to be opened cached.
    func claim(_ root: ContentRoot, for nodeid: UInt64) -> Bool {
        users.withLock { users in
            guard users[root, default: Users()].backed.isSubset(of: [nodeid]) else { return false }
            users[root, default: Users()].backed = [nodeid]
            return true
        }
    }

    /// A file that the kernel reads already becomes the object. Others may still read an earlier
    /// file of that name, which was removed: until they are gone nobody new may claim it.
    func add(_ root: ContentRoot, for nodeid: UInt64) {
        users.withLock { _ = $0[root, default: Users()].backed.insert(nodeid) }
    }

    func release(_ root: ContentRoot, for nodeid: UInt64) {
        change(root) { $0.backed.remove(nodeid) }
    }

    // MARK: The daemon

    /// To be had before the file is opened.
    func use(_ root: ContentRoot, for nodeid: UInt64) -> ObjectUse {
        users.withLock { $0[root, default: Users()].uses[nodeid, default: 0] += 1 }
        return ObjectUse(root, nodeid, self)
    }

    fileprivate func end(_ root: ContentRoot, _ nodeid: UInt64) {
        change(root) { users in
            let count = users.uses[nodeid, default: 0] - 1
            users.uses[nodeid] = count > 0 ? count : nil
        }
    }

    private func change(_ root: ContentRoot, _ body: (inout Users) -> Void) {
        users.withLock { users in
            guard var known = users[root] else { return }
            body(&known)
            users[root] = known.backed.isEmpty && known.uses.isEmpty ? nil : known
        }
    }

    // MARK: Taking it away

    func isOnlyUser(_ vnode: Vnode, of root: ContentRoot) -> Bool {
        users.withLock { $0[root]?.others(than: vnode.nodeid) != true }
    }

    /// Runs `body`, which gives the object's name another file. Who begins to use the object
    /// meanwhile waits, and then finds that one.
    ///
    /// - Returns: false when another vnode uses it; nothing happened then.
    func take(
        _ root: ContentRoot, for vnode: Vnode, _ body: () throws(StoreError) -> Void
    ) throws(StoreError) -> Bool {
        try users.withLock { (users) throws(StoreError) in
            guard users[root]?.others(than: vnode.nodeid) != true else { return false }
            try body()
            return true
        }
    }
}

/// The daemon reads an object's file for a vnode, or may again, as long as this is kept.
final class ObjectUse: Sendable {
    private let root: ContentRoot
    private let nodeid: UInt64
    private let users: ObjectUsers

    fileprivate init(_ root: ContentRoot, _ nodeid: UInt64, _ users: ObjectUsers) {
        self.root = root
        self.nodeid = nodeid
        self.users = users
    }

    deinit { users.end(root, nodeid) }
}
