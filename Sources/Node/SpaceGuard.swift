import Foundation
import Logging
import Mount
import Store
import Synchronization

/// Watches how much room the disk has, so that what takes room is refused in time: the catalog
/// must always be able to say what was answered.
///
/// Passthrough writers fill the disk behind the node's back. Between two looks at most so much
/// metadata can be made as the catalog owns blocks for in advance, and then as the store's reserve
/// holds, which the catalog is given in that case. Without a reserve the disk is full.
final class SpaceGuard: Sendable {
    /// Kept free, or a sixteenth of a small disk.
    static let freeBytesMin: UInt64 = 256 << 20
    static let interval: TimeInterval = 0.05

    private let store: Store
    private let minimum: UInt64
    private let full = Atomic<Bool>(false)
    private let stopping = Atomic<Bool>(false)

    init(store: Store, diskBytes: UInt64) {
        self.store = store
        minimum = min(Self.freeBytesMin, diskBytes / 16)
        look()
    }

    var isFull: Bool { full.load(ordering: .relaxed) }

    func start() {
        OwnThread.start("space") { [self] in
            while !stopping.load(ordering: .relaxed) {
                look()
                Thread.sleep(forTimeInterval: Self.interval)
            }
        }
    }

    func stop() { stopping.store(true, ordering: .relaxed) }

    private func look() {
        guard let free = try? store.freeBytes() else { return }
        let isReserved =
            (try? store.hasReserve()) == true
            || free > minimum * 2 + Store.reserveBytes && (try? store.createReserve()) == true
        // Once full, only well above the line no longer.
        let line = isFull ? minimum * 2 : minimum
        full.store(!isReserved || free < line, ordering: .relaxed)
    }
}
