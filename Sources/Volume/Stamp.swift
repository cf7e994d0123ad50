/// A hybrid logical clock's reading plus the node that took it: unique for every write.
///
/// Ordered by time, then counter, then node. Stamps break ties between concurrent writes only;
/// ancestry decides the rest.
public struct Stamp: Hashable, Sendable, Comparable {
    /// Milliseconds since 1970, 48 bits.
    public let milliseconds: UInt64
    public let counter: UInt16
    public let node: NodeID

    public init(milliseconds: UInt64, counter: UInt16, node: NodeID) {
        self.milliseconds = milliseconds
        self.counter = counter
        self.node = node
    }

    public static func < (a: Self, b: Self) -> Bool {
        (a.milliseconds, a.counter, a.node) < (b.milliseconds, b.counter, b.node)
    }
}

/// The hybrid logical clock: never goes back, never behind anything it has seen.
///
/// A value; the caller supplies wall-clock readings and keeps it under its own lock.
public struct HybridClock: Sendable {
    public let node: NodeID
    /// The last reading given or seen.
    public private(set) var milliseconds: UInt64
    public private(set) var counter: UInt16

    /// - Parameter floor: milliseconds below which no stamp may be given; persisted ahead by the
    ///   catalog so that a restart with a clock set back never reuses a stamp.
    public init(node: NodeID, floor: UInt64) {
        self.node = node
        milliseconds = floor
        counter = 0
    }

    /// The stamp for a write at the given wall-clock time.
    public mutating func next(wall: UInt64) -> Stamp {
        let wall = min(wall, Limits.clockMillisecondsMax)
        if wall > milliseconds {
            milliseconds = wall
            counter = 0
        } else if counter == .max {
            milliseconds += 1
            counter = 0
        } else {
            counter += 1
        }
        return Stamp(milliseconds: milliseconds, counter: counter, node: node)
    }

    /// Adopts a stamp from elsewhere, however far ahead; but of the last valid stamps only so much
    /// that this clock can still give some: else one wrong clock ended all writing in the volume.
    public mutating func observe(_ stamp: Stamp) {
        let isNearEnd = stamp.milliseconds > Limits.clockMillisecondsMax
        let seen =
            isNearEnd ? (Limits.clockMillisecondsMax, 0) : (stamp.milliseconds, stamp.counter)
        if seen > (milliseconds, counter) { (milliseconds, counter) = seen }
    }
}
