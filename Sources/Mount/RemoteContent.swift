public import SystemPackage
public import Volume

/// Where content comes from that is not on this disk.
///
/// Called on FUSE reader threads: must not block. The descriptor handed to a waiter is readable
/// over the asked range only; ranges that were not fetched are never served.
public protocol RemoteContent: AnyObject, Sendable {
    /// Begins to fetch the extent, or joins a fetch under way.
    func stream(_ extent: Extent) -> any ContentStream
}

/// One extent being fetched. Letting go of the last reference ends the interest in it.
public protocol ContentStream: AnyObject, Sendable {
    /// Calls `body` exactly once, on a thread of the provider, when the range is verified and on
    /// the disk, or with an error after a bounded time without progress.
    func whenReadable(
        _ range: Range<UInt64>,
        _ body: @escaping @Sendable (Result<SharedDescriptor, Errno>) -> Void
    )
    /// Calls `body` exactly once when the whole extent is an object on this disk.
    func whenComplete(_ body: @escaping @Sendable (Result<Void, Errno>) -> Void)
}

/// A descriptor that closes when its last holder lets go, so that a read under way never meets a
/// number that was given to another file.
public final class SharedDescriptor: Sendable {
    public let descriptor: FileDescriptor

    public init(_ descriptor: FileDescriptor) { self.descriptor = descriptor }

    deinit { try? descriptor.close() }
}
