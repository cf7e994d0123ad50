import Catalog
import Volume

/// What changed behind the kernel's back: by commits from elsewhere, or by publishing.
struct VolumeChange {
    /// Files whose content changed.
    var contents: Set<InodeNumber> = []
    var attributes: Set<InodeNumber> = []
    /// Names that lead elsewhere now.
    var entries: [AppliedEffects.EntryChange] = []

    init(contents: Set<InodeNumber> = []) { self.contents = contents }

    init(_ effects: AppliedEffects) {
        contents = effects.contents
        attributes = effects.attributes
        entries = effects.entries
    }

    /// A new name of an inode, in a directory.
    mutating func named(_ ino: InodeNumber, _ parent: InodeNumber, _ name: FileName) {
        entries.append(
            AppliedEffects.EntryChange(parent: parent, name: name, before: nil, after: ino))
        attributes.formUnion([ino, parent])
    }
}
