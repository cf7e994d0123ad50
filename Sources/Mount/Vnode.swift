import Catalog
import Glibc
import Store
import SystemPackage
import Volume

import class FUSE.PendingReply

typealias Inode = CatalogInode

/// What serves the bytes of an inode. Indirect: most vnodes are unloaded.
indirect enum Bytes {
    /// Nobody has it open and nothing is unpublished: the row says.
    case unloaded
    case inline([UInt8])
    /// One complete object on this disk. The descriptor is there while the daemon serves from it.
    case object(Extent, SharedDescriptor?)
    /// Extents in order, at least one of which was not on this disk (or there are several).
    case extents([ExtentBytes])
    case staging(StagedFile)
}

struct ExtentBytes {
    enum Source {
        case local(SharedDescriptor)
        /// What is being fetched is an object in the end.
        case remote(any ContentStream, ObjectUse)
    }
    let extent: Extent
    let offset: UInt64
    let source: Source
}

/// A file in `staging/` that serves an inode.
struct StagedFile {
    enum Phase: Equatable {
        /// The row names it: open for writing, or closed and not published yet.
        case unpublished
        /// It is an object already, which the row does not say yet: nothing may write to it any
        /// more. With what stat showed before.
        case sealed(Extent, FileFacts)
        /// The row has the content otherwise; it stays for those who have it open.
        case published
    }

    let name: StagingName
    var phase = Phase.unpublished
    /// There while the daemon serves requests from it.
    var file: SharedDescriptor?
    var isWritable = false
    /// The kernel writes it by itself, stores into a mapping too, of which it tells nobody: it is not
    /// to remember its attributes.
    var mayBeMapped = false
    /// What was copied into it, from the first byte on: it may still be that.
    var copyOf: Extent?
    /// It has the changed blocks only.
    var overlay: StagedOverlay?
    /// Of the object that it is, until its name in `staging/` is gone.
    private(set) var use: ObjectUse?
    /// As it was copied, if a write is certain to leave another modification time.
    var original: FileFacts?

    var isUnpublished: Bool { phase != .published }

    /// Nothing was written since it was copied.
    func isUntouched(_ facts: FileFacts) -> Bool {
        original?.modified == facts.modified && original?.size == facts.size
    }

    /// Its descriptors are not needed for now.
    mutating func close() {
        file = nil
        isWritable = false
        overlay?.bases = []
    }

    /// It bears an object's name.
    mutating func seal(_ extent: Extent, _ facts: FileFacts, _ use: ObjectUse) {
        phase = .sealed(extent, facts)
        self.use = use
        file?.keep(use)
    }
}

/// The kernel allows one mode and one backing file per inode at a time; a violation is EIO to the
/// application. Decided under the vnode's lock, which is held until the reply is written.
enum IOMode: Equatable {
    case closed
    case cached(opens: Int)
    case passthrough(backing: Int32, opens: Int)
}

/// The version that bytes were loaded from, or that a staging file began from.
final class Version: Sendable {
    let stamp: Stamp
    let modified: Timestamp
    let content: Content

    init(_ inode: Inode, _ content: Content) {
        stamp = inode.contentStamp
        modified = inode.modified
        self.content = content
    }
}

/// What a write to a file takes away from it.
struct Privileges: OptionSet {
    let rawValue: UInt8
    /// Set-user-id or set-group-id: unless the writer may keep them (root).
    static let setID = Self(rawValue: 1)
    /// File capabilities: always.
    static let capability = Self(rawValue: 2)
}

/// One inode as the kernel knows it on this mount.
///
/// Who answers READ and WRITE, and what a writer's open does (`OpenStateTests` tries each cell):
///
/// | bytes \ mode | closed | cached | passthrough |
/// |---|---|---|---|
/// | unloaded | loads | – | – |
/// | inline | copies | daemon, from memory; copies, stays cached | never: there is no file |
/// | object | copies | daemon; copies, stays cached | kernel; takes the file, the object's name gets a copy |
/// | extents | fetches, copies | daemon, waits for what is missing; likewise | never: holes would read as zeros |
/// | staging, unpublished | the same file again | daemon | kernel, readers and writers alike |
/// | staging, an overlay | the same file again | daemon, from it and what it lies over | never: it has holes |
/// | staging, sealed | copies, as from an object | daemon; copies | kernel; takes the file |
/// | staging, published | – (dropped at the last close) | daemon; unpublished again | kernel; likewise |
///
/// What ends a state: the last close unloads everything but an unpublished staging file; publishing
/// leads unpublished → sealed (its inode became the object) → object, or unpublished → published
/// (inline, or the bytes were an object already); while nobody has it open both end unloaded. An
/// overlay becomes a whole staging file first, for readers unnoticed.
///
/// Invariants, under the lock:
/// 1. A staging row of the catalog names the unpublished staging file of the inode's current vnode,
///    and that vnode is pinned by a writer or by the publisher.
/// 2. A file that bears an object's name is written to by nobody: `sealed` and `object` have no
///    writers; one object backs at most one inode by passthrough, and a writer takes its file only
///    while no other inode uses it (`ObjectUsers`).
/// 3. While `waiting` is set the bytes are being prepared off the lock: nobody publishes or unloads,
///    and nobody opens but readers of what is there, cached.
/// 4. A superseded vnode has no writers and gets no further opens.
final class Vnode: @unchecked Sendable {
    // Sendable: `state` is touched only between `lock` and `unlock`.
    let nodeid: UInt64
    let ino: InodeNumber
    var state = VnodeState()
    /// What keeps it alive; the table's lock guards both.
    var lookups: UInt64 = 0
    var pins = 0
    /// A fifth of what an `NSLock` takes: the kernel may know millions of inodes.
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)

    init(nodeid: UInt64, ino: InodeNumber, recorded: UInt64) {
        self.nodeid = nodeid
        self.ino = ino
        state.recorded = recorded
        mutex.initialize(to: pthread_mutex_t())
        pthread_mutex_init(mutex, nil)
    }

    deinit {
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
    }

    func lock() { pthread_mutex_lock(mutex) }
    func unlock() { pthread_mutex_unlock(mutex) }

    /// The body may touch `state`, and must not lock this vnode again.
    func locked<T, Failure: Error>(_ body: () throws(Failure) -> T) throws(Failure) -> T {
        lock()
        defer { unlock() }
        return try body()
    }
}

struct VnodeState {
    var bytes = Bytes.unloaded
    /// Of `bytes`; nil while unloaded.
    var version: Version?
    var mode = IOMode.closed
    var opens = 0
    /// Opens for writing and truncations under way.
    var writers = 0
    /// Grows with every open for writing: a publish that began under a smaller one gives up.
    var writeGeneration: UInt64 = 0
    /// Ends the hashing of a file that is being opened for writing again.
    var hashing: Cancellation?
    var publishing = PublishRhythm()
    /// When publishing last changed the row, in `VnodeTable.recorded`; of a new vnode, which may have
    /// had a predecessor, when it was made.
    var recorded: UInt64 = 0
    /// As of the copy that was published while somebody could still write to the staging file.
    @Boxed var copied: FileFacts?
    /// A version from elsewhere took the name: this vnode's bytes are an older one.
    var isSuperseded = false
    /// What the kernel was last told; it may have counted on from there.
    var shownSize: UInt64 = 0
    /// The version that the kernel's pages of this nodeid are of, unless they are stale.
    var pages: Stamp?
    /// The bytes changed without the page cache: by passthrough, by a truncation, from elsewhere.
    var pageCacheIsStale = false
    /// Where there are any, a write must be seen by the daemon. Known while there are writers.
    var privileges: Privileges = []
    /// While bytes are being prepared off the lock: who goes on afterwards. Who began it is the first
    /// and gets the error.
    var waiting: [Waiter]?
    /// The file that the kernel reads by itself.
    var backing: FileIdentity?
    /// The object that this vnode backs by passthrough.
    var claimed: ContentRoot?
    /// Its bytes are on their way into several objects, and the staging file has holes: nobody
    /// opens it (`waiting` is set) until that is done.
    @Boxed var split: Publication?

    /// Its rows have changed since the catalog's batch was last committed for it: a kill of this
    /// process could take that back.
    var isUncommitted = false

    var isInUse: Bool { opens > 0 || writers > 0 || waiting != nil }

    var staged: StagedFile? {
        if case .staging(let staged) = bytes { return staged }
        return nil
    }

    /// Its bytes, if they are those of one object. No more than a hint while there are writers.
    var object: Extent? {
        guard let extents = version?.content.extents, extents.count == 1 else { return nil }
        return extents[0]
    }

    /// The bytes that a writer waits for a copy of are still those of readers.
    var isReadableMeanwhile: Bool {
        switch bytes {
        case .object, .extents: split == nil
        case .unloaded, .inline, .staging: false
        }
    }

    /// What is being written may become a copy of the object.
    mutating func noteCopy(of object: Extent?) {
        guard var staged else { return }
        staged.copyOf = object
        bytes = .staging(staged)
    }

    mutating func unload() {
        bytes = .unloaded
        version = nil
        backing = nil
    }
}

/// Takes a pointer where there is nothing: what few of very many vnodes have.
@propertyWrapper struct Boxed<Value> {
    private final class Box {
        let value: Value
        init(_ value: Value) { self.value = value }
    }

    private var box: Box?

    var wrappedValue: Value? {
        get { box?.value }
        set { box = newValue.map(Box.init) }
    }
}

/// A request that needs the bytes to be there.
struct Waiter {
    let reply: PendingReply
    let proceed: @Sendable (Errno?) -> Void

    /// It was interrupted and may not happen any more.
    var isGone: Bool { reply.isAnswered }
}

/// When a file is published again: after a quiet time, so that one that is closed and opened over
/// and over is not hashed each time.
struct PublishRhythm {
    static let quietMillisecondsMin: UInt64 = 200
    static let quietMillisecondsMax: UInt64 = 30_000

    /// How long the last hashing took; nil before the first.
    var hashingMilliseconds: UInt64?
    /// Since when something is unpublished.
    private var since: UInt64?
    private(set) var due: UInt64 = 0

    /// The last writer has closed.
    mutating func closed(now: UInt64) {
        let first = since ?? now
        since = first
        guard let last = hashingMilliseconds else {
            due = now
            return
        }
        let quiet = min(max(Self.quietMillisecondsMin, last), Self.quietMillisecondsMax)
        due = min(now + quiet, first + Self.quietMillisecondsMax)
    }

    mutating func published(hashingMilliseconds: UInt64) {
        since = nil
        self.hashingMilliseconds = hashingMilliseconds
    }
}
