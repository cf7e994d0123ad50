import NIOCore
import NIOSSL
import Volume

/// TLS 1.3 with the volume's authority as the only root, on both sides.
enum TLSContexts {
    static func server(identity: NodeIdentity, authority: VolumeAuthority) throws -> NIOSSLContext {
        var configuration = TLSConfiguration.makeServerConfigurationWithMTLS(
            certificateChain: try chain(identity, authority), privateKey: try key(identity),
            trustRoots: try root(authority))
        configuration.minimumTLSVersion = .tlsv13
        configuration.maximumTLSVersion = .tlsv13
        return try NIOSSLContext(configuration: configuration)
    }

    static func client(identity: NodeIdentity, authority: VolumeAuthority) throws -> NIOSSLContext {
        var configuration = TLSConfiguration.makeClientConfiguration()
        configuration.minimumTLSVersion = .tlsv13
        configuration.maximumTLSVersion = .tlsv13
        // The authority is private: whoever has its certificate is a member under any name.
        configuration.certificateVerification = .noHostnameVerification
        configuration.trustRoots = try root(authority)
        configuration.certificateChain = try chain(identity, authority)
        configuration.privateKey = try key(identity)
        return try NIOSSLContext(configuration: configuration)
    }

    /// For asking a stranger which authority it has, showing no certificate of ours.
    static func anonymousClient() throws -> NIOSSLContext {
        var configuration = TLSConfiguration.makeClientConfiguration()
        configuration.minimumTLSVersion = .tlsv13
        configuration.certificateVerification = .noHostnameVerification
        configuration.trustRoots = .certificates([])
        return try NIOSSLContext(configuration: configuration)
    }

    /// The member at the other end, after the handshake; nil if its certificate is not in order.
    static func peer(of context: ChannelHandlerContext) throws -> NodeID? {
        let handler = try context.pipeline.syncOperations.handler(type: NIOSSLHandler.self)
        guard handler.tlsVersion == .tlsv13, let certificate = handler.peerCertificate else {
            return nil
        }
        return MemberCertificate.node(
            der: try certificate.toDERBytes(),
            publicKey: try certificate.extractPublicKey().toSPKIBytes())
    }

    /// Whether a TLS error says that one side refused the other's certificate.
    ///
    /// BoringSSL's codes are not exposed, so its names are matched. All authorities have one name
    /// and differ in their keys, hence DECRYPT_ERROR: a signature that does not verify.
    static func isAboutCertificates(_ error: any Error) -> Bool {
        let text = "\(error)"
        return [
            "CERTIFICATE_VERIFY_FAILED", "UNKNOWN_CA", "DECRYPT_ERROR", "BAD_CERTIFICATE",
            "CERTIFICATE_REQUIRED", "CERTIFICATE_UNKNOWN", "PEER_DID_NOT_RETURN_A_CERTIFICATE",
            "UNSUPPORTED_CERTIFICATE", "ACCESS_DENIED",
        ].contains { text.contains($0) }
    }

    /// Why a stranger's handshake failed, by the error that ended it.
    static func refusal(_ error: any Error) -> HandshakeRefusal {
        if isAboutCertificates(error) { return .wrongAuthority }
        // The alert of someone who refuses us may be lost when he closes at once.
        if "\(error)".contains("EOF during handshake") { return .unfinished }
        return .protocolError(PeerError.printable("\(error)".utf8))
    }

    /// The authority's certificate goes along, so that one with a wrong key can name what it met.
    private static func chain(
        _ identity: NodeIdentity, _ authority: VolumeAuthority
    ) throws -> [NIOSSLCertificateSource] {
        try [identity.certificateDER, authority.certificateDER].map {
            .certificate(try NIOSSLCertificate(bytes: $0, format: .der))
        }
    }

    private static func key(_ identity: NodeIdentity) throws -> NIOSSLPrivateKeySource {
        .privateKey(try NIOSSLPrivateKey(bytes: Array(identity.privateKeyPEM.utf8), format: .pem))
    }

    private static func root(_ authority: VolumeAuthority) throws -> NIOSSLTrustRoots {
        .certificates([try NIOSSLCertificate(bytes: authority.certificateDER, format: .der)])
    }
}
