public import Volume

/// Where the mount takes the past from. All of it is called on threads that may block.
public struct PastSource: Sendable {
    /// The volume as of a commit.
    public struct State: Hashable, Sendable {
        public let commit: ObjectID
        /// The commit's whole tree.
        public let tree: ObjectID

        public init(commit: ObjectID, tree: ObjectID) {
            self.commit = commit
            self.tree = tree
        }
    }

    /// The state that a time or a commit names, as a user writes it; nil: none.
    let find: @Sendable (_ name: [UInt8]) throws -> State?
    /// A few states that a listing offers, by names that `find` takes.
    let list: @Sendable () throws -> [(name: [UInt8], state: State)]
    let objects: any TreeSource & Sendable

    public init(
        find: @escaping @Sendable (_ name: [UInt8]) throws -> State?,
        list: @escaping @Sendable () throws -> [(name: [UInt8], state: State)],
        objects: any TreeSource & Sendable
    ) {
        self.find = find
        self.list = list
        self.objects = objects
    }
}
