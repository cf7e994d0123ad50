public import Volume

/// The info dictionary of an extent: built from root and length alone (and what is the same on
/// every node of the volume), so that no .torrent file is ever stored or sent.
public struct InfoDictionary: Sendable {
    /// The authority's certificate; nil in plain volumes.
    public let authorityPEM: String?
    public let salt: [UInt8]

    public init(authorityPEM: String?, salt: [UInt8]) {
        self.authorityPEM = authorityPEM
        self.salt = salt
    }

    /// Bencoded, keys in order: one byte of difference is another info-hash, another swarm.
    public func encode(_ extent: Extent) -> [UInt8] {
        let name = extent.root.description
        var out: [UInt8] = []
        out += "d9:file treed\(name.utf8.count):\(name)d0:d".utf8
        out += "6:lengthi\(extent.length)e11:pieces root32:".utf8
        out += extent.root.bytes
        out += "eee".utf8
        out += "12:meta versioni2e".utf8
        out += "4:name\(name.utf8.count):\(name)".utf8
        out += "12:piece lengthi\(extent.pieceBytes)e".utf8
        out += "4:salt\(salt.count):".utf8
        out += salt
        if let authorityPEM {
            out += "8:ssl-cert\(authorityPEM.utf8.count):\(authorityPEM)".utf8
        }
        out += "e".utf8
        return out
    }
}
