import Synchronization
public import SystemPackage
public import Volume

/// Where content comes from that is not on this disk, and who else uses what is.
///
/// Called on FUSE reader threads: must not block.
public protocol RemoteContent: AnyObject, Sendable {
    /// Begins to fetch the extent, or joins a fetch under way.
    func stream(_ extent: Extent) -> any ContentStream

    /// Calls `body` exactly once: whether a disk of the volume has the extent, one that is off
    /// perhaps. Takes a few seconds at most.
    func findHolder(of extent: Extent, _ body: @escaping @Sendable (Bool) -> Void)

    /// The object's file is about to be written to, and its name has another file of the same
    /// bytes: calls `body` exactly once when nobody reads the old one for peers any more.
    func letGo(of extent: Extent, _ body: @escaping @Sendable () -> Void)

    /// An object that the catalog knew is not on the disk, or not whole; the catalog knows now.
    func isMissing(_ extent: Extent)

    /// The disk gave an error for a range of an object. Calls `body` exactly once: when that range is
    /// fetched like any other, or with nil when nobody else has it. Takes a few seconds at most.
    func isUnreadable(
        _ range: Range<UInt64>, of extent: Extent,
        _ body: @escaping @Sendable ((any ContentStream)?) -> Void)
}

/// One extent being fetched. Letting go of the last reference ends the interest in it.
public protocol ContentStream: AnyObject, Sendable {
    /// Calls `body` exactly once, on a thread of the provider, when the range is verified and on
    /// the disk, or with an error after a bounded time without progress. The descriptor is readable
    /// over the asked range only: what was not fetched is never served.
    func whenReadable(
        _ range: Range<UInt64>,
        _ body: @escaping @Sendable (Result<SharedDescriptor, Errno>) -> Void
    ) -> ContentWait

    /// Calls `body` exactly once when the whole extent is an object on this disk.
    func whenComplete(_ body: @escaping @Sendable (Result<Void, Errno>) -> Void)
}

/// A wait for content that may be given up: nothing is kept for it afterwards.
public struct ContentWait: Sendable {
    private let end: @Sendable () -> Void

    /// - Parameter end: called at most a few times, from any thread; `body` need not be called then.
    public init(_ end: @escaping @Sendable () -> Void) { self.end = end }

    /// For what was answered at once.
    public static let over = ContentWait {}

    public func cancel() { end() }
}

/// A descriptor that closes when its last holder lets go, so that a read under way never meets a
/// number that was given to another file.
public final class SharedDescriptor: Sendable {
    public let descriptor: FileDescriptor
    /// There once the file is an object's.
    private let use: Mutex<ObjectUse?>

    public convenience init(_ descriptor: FileDescriptor) { self.init(descriptor, nil) }

    init(_ descriptor: FileDescriptor, _ use: ObjectUse?) {
        self.descriptor = descriptor
        self.use = Mutex(use)
    }

    func keep(_ use: ObjectUse) { self.use.withLock { $0 = use } }

    deinit { try? descriptor.close() }
}
