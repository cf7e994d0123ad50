public import Volume

/// Shows the volume's owner as a local user and stores that user's files as the volume's owner;
/// all other ids pass unchanged.
public struct OwnerMapping: Sendable {
    /// The uid and gid that created the volume, from its settings.
    public let volume: Owner
    /// Who stands for it on this machine.
    public let local: Owner

    public init(volume: Owner, local: Owner) {
        self.volume = volume
        self.local = local
    }

    /// From the volume's ids to this machine's.
    func shown(_ owner: Owner) -> Owner {
        Owner(
            uid: owner.uid == volume.uid ? local.uid : owner.uid,
            gid: owner.gid == volume.gid ? local.gid : owner.gid)
    }

    /// From this machine's ids to the volume's.
    func stored(_ owner: Owner) -> Owner {
        Owner(
            uid: owner.uid == local.uid ? volume.uid : owner.uid,
            gid: owner.gid == local.gid ? volume.gid : owner.gid)
    }
}
