import Volume

/// What the session's thread tells every torrent. Called on that thread, with no lock held.
protocol LoadedTorrent: AnyObject, Sendable {
    var extent: Extent { get }
    var token: UInt64 { get }
    var statistics: TorrentStatistics { get }
    var isClosed: Bool { get }
    func handle(_ event: TorrentEvent)
    /// Once a second.
    func tick(_ now: ContinuousClock.Instant)
    /// Events were lost: ask libtorrent what is true. May block for the network thread.
    func resynchronize()
    /// It will never be heard of again: everybody who waits gets the error.
    func close(_ error: SwarmError)
}
