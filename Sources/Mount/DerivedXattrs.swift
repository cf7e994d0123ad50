import Catalog
import SystemPackage
import Volume

/// `user.delugefs.` names say what the volume knows of a file; they are not stored.
struct DerivedXattrs: Sendable {
    static let prefix = Array("user.delugefs.".utf8)

    let catalog: Catalog
    let failures: FailureLog
    /// The names of the disks that hold all of these, offline ones too.
    let holders: @Sendable ([Extent]) -> [String]

    /// nil for a name that is none of these.
    func value(_ name: [UInt8], of extents: [Extent]) throws(Errno) -> [UInt8]? {
        guard name.starts(with: Self.prefix) else { return nil }
        let value: String
        switch String(decoding: name.dropFirst(Self.prefix.count), as: UTF8.self) {
        case "root": value = extents.map { "\($0.root)" }.joined(separator: ",")
        case "holders": value = holders(extents).joined(separator: ",")
        case "copies.now": value = "\(holders(extents).count)"
        case "local": value = "\(try localPercent(extents))"
        default: return nil
        }
        return Array(value.utf8)
    }

    private func localPercent(_ extents: [Extent]) throws(Errno) -> UInt64 {
        let total = extents.reduce(0) { $0 + $1.length }
        guard total > 0 else { return 100 }
        do {
            let here = try catalog.read { reader in
                try extents.reduce(0) { try $0 + Self.here($1, reader) }
            }
            return here * 100 / total
        } catch { throw failures.errno(error, "getxattr") }
    }

    private static func here(_ extent: Extent, _ reader: Reader) throws(Errno) -> UInt64 {
        guard let entry = try reader.content(extent.root) else { return 0 }
        switch entry.state {
        case .cached, .stored, .dropping: return extent.length
        case .partial:
            let pieces = UInt64((entry.verified ?? []).reduce(0) { $0 + $1.nonzeroBitCount })
            return min(extent.length, pieces * extent.pieceBytes)
        default: return 0
        }
    }
}
