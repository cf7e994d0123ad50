import Crypto
import SwiftASN1
public import SystemPackage
public import Volume
import X509

/// What makes a disk a node: a P-256 key, kept in `ROOT/node.key`, and the certificate that the
/// volume's authority gives it.
///
/// The certificate is rebuilt at each start; only the key is kept. The node id is the first 16
/// bytes
/// of SHA-256 of the public key as a SubjectPublicKeyInfo in DER.
public struct NodeIdentity: Sendable {
    public let node: NodeID
    /// SubjectPublicKeyInfo, DER; its hash is the node id.
    public let publicKey: [UInt8]
    public let certificateDER: [UInt8]
    /// For libtorrent: the leaf alone.
    public let certificatePEM: String
    /// For libtorrent: PKCS #8. A secret.
    public let privateKeyPEM: String

    let privateKey: P256.Signing.PrivateKey

    /// The most bytes a key file may have.
    private static let keyFileBytesMax = 16_384

    /// A new identity that is not kept anywhere yet; see `keep(at:)`.
    public static func generate(authority: VolumeAuthority) throws -> NodeIdentity {
        try NodeIdentity(privateKey: P256.Signing.PrivateKey(), authority: authority)
    }

    /// The identity whose key is in the given file.
    ///
    /// - Throws: `OwnerOnlyFileError` (missing, readable for others) or `IdentityError.invalidKey`.
    public static func load(at path: FilePath, authority: VolumeAuthority) throws -> NodeIdentity {
        let bytes = try OwnerOnlyFile.read(path, bytesMax: keyFileBytesMax)
        guard
            let key = try? P256.Signing.PrivateKey(
                pemRepresentation: String(decoding: bytes, as: UTF8.self))
        else { throw IdentityError.invalidKey(path) }
        return try NodeIdentity(privateKey: key, authority: authority)
    }

    /// Writes the key, durably, unless a file is there already.
    public func keep(at path: FilePath) throws {
        try OwnerOnlyFile.create(path, contents: Array(privateKeyPEM.utf8))
    }

    private init(privateKey: P256.Signing.PrivateKey, authority: VolumeAuthority) throws {
        self.privateKey = privateKey
        publicKey = Array(privateKey.publicKey.derRepresentation)
        node = Self.node(ofPublicKey: publicKey)
        let subject = DistinguishedName([
            RelativeDistinguishedName([
                RelativeDistinguishedName.Attribute(
                    type: .RDNAttributeType.commonName, utf8String: node.description)
            ])
        ])
        let certificate = try Certificate(
            version: .v3, serialNumber: Certificate.SerialNumber(bytes: [1] + node.bytes),
            publicKey: Certificate.PublicKey(privateKey.publicKey),
            notValidBefore: CertificateTimes.begin, notValidAfter: CertificateTimes.end,
            issuer: authority.name, subject: subject, signatureAlgorithm: .ed25519,
            extensions: try Certificate.Extensions {
                // libtorrent matches the torrent's name against the certificate: a wildcard fits
                // all.
                SubjectAlternativeNames([.dnsName("*")])
                try ExtendedKeyUsage([.serverAuth, .clientAuth])
            },
            issuerPrivateKey: Certificate.PrivateKey(authority.signingKey))
        certificateDER = try certificate.derBytes()
        certificatePEM = PEM.encode(certificateDER, label: "CERTIFICATE")
        privateKeyPEM = PEM.encode(Array(privateKey.derRepresentation), label: "PRIVATE KEY")
    }

    /// The id of the node that has the given public key (SubjectPublicKeyInfo, DER).
    public static func node(ofPublicKey publicKey: some Collection<UInt8>) -> NodeID {
        var high: UInt64 = 0
        var low: UInt64 = 0
        for (index, byte) in SHA256.hash(data: Array(publicKey)).prefix(16).enumerated() {
            if index < 8 { high = high << 8 | UInt64(byte) } else { low = low << 8 | UInt64(byte) }
        }
        return NodeID(high: high, low: low)
    }
}

extension NodeIdentity: CustomStringConvertible, CustomReflectable {
    public var description: String { "NodeIdentity(\(node))" }
    public var customMirror: Mirror { Mirror(self, children: ["node": node]) }
}

public enum IdentityError: Error, CustomStringConvertible {
    /// The file is there but holds no P-256 key.
    case invalidKey(FilePath)

    public var description: String {
        switch self {
        case .invalidKey(let path): "\(path) holds no node key; restore it from a backup"
        }
    }
}

// MARK: - Signatures

/// What a signature is for, so that one made for one purpose never serves another.
public enum SignaturePurpose: String, Sendable {
    case holderLogHead = "delugefs v1 holder log head\n"
}

extension NodeIdentity {
    /// A P-256 ECDSA signature, 64 bytes. Not deterministic: two signatures of the same bytes
    /// differ.
    public func sign(_ message: some Collection<UInt8>, for purpose: SignaturePurpose) throws
        -> [UInt8]
    {
        let text = Array(purpose.rawValue.utf8) + message
        return Array(try privateKey.signature(for: text).rawRepresentation)
    }

    /// Whether the node signed the message; `publicKey` may come from anyone, for its hash must be
    /// the node's id.
    public static func verify(
        _ signature: [UInt8], of message: some Collection<UInt8>, for purpose: SignaturePurpose,
        by node: NodeID, publicKey: [UInt8]
    ) -> Bool {
        guard Self.node(ofPublicKey: publicKey) == node,
            let key = try? P256.Signing.PublicKey(derRepresentation: publicKey),
            let signature = try? P256.Signing.ECDSASignature(rawRepresentation: signature)
        else { return false }
        return key.isValidSignature(signature, for: Array(purpose.rawValue.utf8) + message)
    }
}

// MARK: - A peer's certificate

/// What a verified certificate says of the peer; nil unless the common name is the key's hash.
enum MemberCertificate {
    static func node(der: [UInt8], publicKey: [UInt8]) -> NodeID? {
        guard let certificate = try? Certificate(derEncoded: der) else { return nil }
        let node = NodeIdentity.node(ofPublicKey: publicKey)
        let names = certificate.subject.flatMap { Array($0) }
        guard names.count == 1, names[0].type == .RDNAttributeType.commonName,
            String(describing: names[0].value) == node.description
        else { return nil }
        return node
    }
}
