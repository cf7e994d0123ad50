import Crypto
import FoundationEssentials
import SwiftASN1
public import Volume
import X509

/// The certificate authority that every node derives from the volume key by itself.
///
/// Ed25519, because its signatures are deterministic: all nodes must arrive at the same certificate
/// byte for byte, since its PEM form is part of every torrent's info dictionary.
public struct VolumeAuthority: Sendable {
    /// The CA certificate.
    public let certificateDER: [UInt8]
    /// 64 columns, with a final newline; exactly what `ssl-cert` holds in a torrent.
    public let certificatePEM: String
    /// The first 16 hexadecimal digits of SHA-256 of the certificate: names the authority in
    /// public.
    public let ca16: String
    /// 32 bytes that make info-hashes meaningless to those who have not the key.
    public let infoSalt: [UInt8]
    private let dhtKey: [UInt8]

    let signingKey: Curve25519.Signing.PrivateKey
    let name: DistinguishedName

    /// - Throws: only if the cryptographic library refuses its own output.
    public init(key: VolumeKey) throws {
        let seed = Self.derive(from: key, info: "delugefs v1 ca ed25519")
        signingKey = try Curve25519.Signing.PrivateKey(rawRepresentation: seed)
        infoSalt = Self.derive(from: key, info: "delugefs v1 info")
        dhtKey = Self.derive(from: key, info: "delugefs v1 dht")
        name = DistinguishedName([
            RelativeDistinguishedName([
                RelativeDistinguishedName.Attribute(
                    type: .RDNAttributeType.commonName, utf8String: "DelugeFS volume authority")
            ])
        ])
        let identifier = SHA256.hash(data: signingKey.publicKey.rawRepresentation)
            .prefix(20)
        let certificate = try Certificate(
            version: .v3, serialNumber: Certificate.SerialNumber(bytes: [1]),
            publicKey: Certificate.PublicKey(signingKey.publicKey),
            notValidBefore: CertificateTimes.begin, notValidAfter: CertificateTimes.end,
            issuer: name, subject: name, signatureAlgorithm: .ed25519,
            extensions: try Certificate.Extensions {
                Critical(BasicConstraints.isCertificateAuthority(maxPathLength: 0))
                Critical(KeyUsage(keyCertSign: true, cRLSign: true))
                SubjectKeyIdentifier(keyIdentifier: ArraySlice(identifier))
            },
            issuerPrivateKey: Certificate.PrivateKey(signingKey))
        certificateDER = try certificate.derBytes()
        certificatePEM = PEM.encode(certificateDER, label: "CERTIFICATE")
        ca16 = Self.shortName(of: certificateDER)
    }

    /// Under what content is found in the volume's private DHT: means nothing to strangers.
    public func dhtKey(of root: ContentRoot) -> [UInt8] {
        let code = HMAC<SHA256>.authenticationCode(
            for: root.bytes, using: SymmetricKey(data: dhtKey))
        return Array(code.prefix(20))  // bytes: what a DHT's keys have
    }

    /// The `ca16` of any authority's certificate.
    static func shortName(of der: [UInt8]) -> String {
        Hex.encode(SHA256.hash(data: der).prefix(8))
    }

    /// An authority's own secrets for other purposes, by HKDF-SHA256 with the salt `delugefs`.
    private static func derive(from key: VolumeKey, info: String) -> [UInt8] {
        let derived = HKDF<SHA256>.deriveKey(
            inputKeyMaterial: SymmetricKey(data: key.bytes), salt: Array("delugefs".utf8),
            info: Array(info.utf8), outputByteCount: 32)
        return derived.withUnsafeBytes { Array($0) }
    }
}

extension VolumeAuthority: CustomStringConvertible, CustomReflectable {
    public var description: String { "VolumeAuthority(\(ca16))" }
    public var customMirror: Mirror { Mirror(self, children: ["ca16": ca16]) }
}

/// A certificate proves membership; its times prove nothing, so they exclude no clock.
enum CertificateTimes {
    static let begin = Date(timeIntervalSince1970: 0)
    /// 9999-12-31T00:00:00Z
    static let end = Date(timeIntervalSince1970: 253_402_214_400)
}

extension Certificate {
    func derBytes() throws -> [UInt8] {
        var serializer = DER.Serializer()
        try serialize(into: &serializer)
        return serializer.serializedBytes
    }
}

/// RFC 7468 text, 64 columns and a final newline.
enum PEM {
    private static let columns = 64

    static func encode(_ der: [UInt8], label: String) -> String {
        var lines = ["-----BEGIN \(label)-----"]
        var rest = Data(der).base64EncodedString()[...]
        while !rest.isEmpty {
            lines.append(String(rest.prefix(columns)))
            rest = rest.dropFirst(columns)
        }
        lines.append("-----END \(label)-----")
        return lines.joined(separator: "\n") + "\n"
    }
}
