import Glibc
import SystemPackage
import Testing
import Volume

@testable import Mesh

@Suite struct KeyTests {
    static func key(_ byte: UInt8) throws -> VolumeKey {
        try #require(VolumeKey(bytes: [UInt8](repeating: byte, count: 32)))
    }

    @Test func aKeySurvivesItsTextWhateverTheWhiteSpace() throws {
        for _ in 0..<100 {
            let key = VolumeKey.generate()
            let text = key.exportedText
            #expect(text.utf8.count == 61)
            #expect(text.hasPrefix("dfs1-"))
            #expect(try VolumeKey(parsing: text.utf8) == key)
            let wrapped = " \t" + text.map { "\($0)\r\n " }.joined()
            #expect(try VolumeKey(parsing: wrapped.utf8) == key)
        }
    }

    @Test func theTextOfAKeyNeverChanges() throws {
        #expect(
            try Self.key(7).exportedText
                == "dfs1-a4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dq7pjc")
    }

    @Test func noSingleMistakeIsAccepted() throws {
        // One key for ever: of all mistakes in all keys, one in 2^20 passes a check of 20 bits.
        let text = Array(try Self.key(7).exportedText.utf8)
        for index in text.indices {
            for replacement in UInt8.min ... .max where replacement != text[index] {
                var mistaken = text
                mistaken[index] = replacement
                #expect(throws: NotAKey.self) { try VolumeKey(parsing: mistaken) }
            }
            var shorter = text
            shorter.remove(at: index)
            #expect(throws: NotAKey.self) { try VolumeKey(parsing: shorter) }
        }
        #expect(throws: NotAKey.length) { try VolumeKey(parsing: text + [0x61]) }
        #expect(throws: NotAKey.prefix) { try VolumeKey(parsing: []) }
        let endless = [UInt8](repeating: 0x20, count: 5000)
        #expect(throws: NotAKey.length) { try VolumeKey(parsing: endless + text) }
    }

    @Test func rubbishIsNotAKey() {
        let seed = UInt64.random(in: .min ... .max)
        var random = SeededRandom(seed: seed)
        for _ in 0..<2000 {
            let count = Int.random(in: 0..<90, using: &random)
            let rubbish = (0..<count).map { _ in UInt8.random(in: .min ... .max, using: &random) }
            let text = Bool.random(using: &random) ? Array("dfs1-".utf8) + rubbish : rubbish
            #expect(throws: NotAKey.self, "seed \(seed)") { try VolumeKey(parsing: text) }
        }
    }

    @Test func aKeyIsNeverPrintedByAccident() throws {
        let key = try Self.key(7)
        let authority = try VolumeAuthority(key: key)
        let identity = try NodeIdentity.generate(authority: authority)
        var text = "\(key) \(String(reflecting: key)) \(authority) \(identity)"
        dump(key, to: &text)
        dump(authority, to: &text)
        dump(identity, to: &text)
        #expect(!text.contains("a4dqobyh"))
        #expect(!text.contains("7, 7"))
        #expect(!text.contains("PRIVATE"))
    }
}

@Suite struct AuthorityTests {
    @Test func theCertificateIsTheSameOnEveryNodeForEver() throws {
        let authority = try VolumeAuthority(key: KeyTests.key(7))
        #expect(
            Hex.encode(sha256(authority.certificateDER))
                == "d4b85859fd99739f713345b5302c6a85c9170babe069ed22a92d64b90d4df279")
        #expect(authority.ca16 == "d4b85859fd99739f")
        #expect(authority.infoSalt.count == 32)
        let root = try #require(ContentRoot(bytes: [UInt8](repeating: 9, count: 32)))
        #expect(
            Hex.encode(authority.dhtKey(of: root)) == "4a0d2707832d46d8f003dbd72a06c0e732777002")
        let lines = authority.certificatePEM.split(
            separator: "\n", omittingEmptySubsequences: false)
        #expect(lines.first == "-----BEGIN CERTIFICATE-----")
        #expect(lines.suffix(2) == ["-----END CERTIFICATE-----", ""])
        #expect(lines.dropFirst().dropLast(3).allSatisfy { $0.count == 64 })
        #expect(try VolumeAuthority(key: KeyTests.key(8)).ca16 != authority.ca16)
    }

    @Test func aNodeKeepsItsIdentity() throws {
        let directory = try TemporaryDirectory()
        let authority = try VolumeAuthority(key: KeyTests.key(7))
        let identity = try NodeIdentity.generate(authority: authority)
        let path = directory.path.appending("node.key")
        try identity.keep(at: path)
        #expect(throws: OwnerOnlyFileError.exists(path)) { try identity.keep(at: path) }
        let again = try NodeIdentity.load(at: path, authority: authority)
        #expect(again.node == identity.node)
        #expect(again.publicKey == identity.publicKey)
        #expect(identity.node.bytes == Array(sha256(identity.publicKey).prefix(16)))
        #expect(chmod(path.string, 0o640) == 0)
        #expect(throws: OwnerOnlyFileError.exposed(path)) {
            try NodeIdentity.load(at: path, authority: authority)
        }
    }

    @Test func opensslAgreesAboutBothCertificates() async throws {
        let directory = try TemporaryDirectory()
        let authority = try VolumeAuthority(key: .generate())
        let identity = try NodeIdentity.generate(authority: authority)
        try directory.write("ca.pem", authority.certificatePEM)
        try directory.write("leaf.pem", identity.certificatePEM)
        try directory.write("leaf.key", identity.privateKeyPEM)
        let path = directory.path.string
        let verified = try await run(
            "openssl", "verify", "-CAfile", "\(path)/ca.pem", "-purpose", "sslserver",
            "\(path)/leaf.pem")
        #expect(verified.output.contains("OK"), "\(verified.output)")
        let subject = try await run(
            "openssl", "x509", "-in", "\(path)/leaf.pem", "-noout", "-subject", "-ext",
            "subjectAltName,extendedKeyUsage")
        #expect(subject.output.contains("subject=CN = \(identity.node)"), "\(subject.output)")
        #expect(subject.output.contains("DNS:*"))
        #expect(subject.output.contains("TLS Web Server Authentication, TLS Web Client"))
        let publicKey = try await run("openssl", "pkey", "-in", "\(path)/leaf.key", "-pubout")
        #expect(publicKey.status == 0)
    }

    @Test func aSignatureHoldsForItsNodePurposeAndMessageOnly() throws {
        let authority = try VolumeAuthority(key: .generate())
        let identity = try NodeIdentity.generate(authority: authority)
        let other = try NodeIdentity.generate(authority: authority)
        let message = Array("head 7".utf8)
        let signature = try identity.sign(message, for: .holderLogHead)
        func holds(
            _ signature: [UInt8], _ message: [UInt8], _ node: NodeID, _ key: [UInt8]
        ) -> Bool {
            NodeIdentity.verify(
                signature, of: message, for: .holderLogHead, by: node, publicKey: key)
        }
        #expect(holds(signature, message, identity.node, identity.publicKey))
        #expect(!holds(signature, message + [0], identity.node, identity.publicKey))
        #expect(!holds(signature, message, other.node, identity.publicKey))
        #expect(!holds(signature, message, other.node, other.publicKey))
        #expect(!holds([], message, identity.node, identity.publicKey))
        #expect(!holds(signature, message, identity.node, []))
    }
}

@Suite struct KeyRingTests {
    @Test func aDifferentKeyIsKeptAsideAndNoneIsLost() throws {
        let directory = try TemporaryDirectory()
        let ring = KeyRing(directory: directory.path.appending("config").appending("delugefs"))
        #expect(try ring.key(volume: "v") == nil)
        let keys = (0..<3).map { _ in VolumeKey.generate() }
        for key in keys + [keys[2], keys[0], keys[1]] {
            try ring.keep(key, volume: "v")
            #expect(try ring.key(volume: "v") == key)
        }
        for key in keys.dropFirst(2) + [keys[0]] {
            let aside = ring.directory.appending("v.\(try VolumeAuthority(key: key).ca16).key")
            #expect(try KeyRing.read(aside) == key)
        }
        var status = stat()
        #expect(stat(ring.directory.string, &status) == 0 && status.st_mode & 0o777 == 0o700)
        #expect(stat(ring.path(volume: "v").string, &status) == 0)
        #expect(status.st_mode & 0o777 == 0o600)
    }

    @Test func whatIsNoKeyIsLeftAlone() throws {
        let directory = try TemporaryDirectory()
        let ring = KeyRing(directory: directory.path)
        try directory.write("v.key", "remember the milk")
        #expect(throws: NotAKey.self) { try ring.keep(.generate(), volume: "v") }
        #expect(throws: NotAKey.self) { try ring.key(volume: "v") }
    }

    @Test func theDirectoryFollowsTheEnvironment() {
        #expect(KeyRing.directory(configHome: "/c", home: "/h") == "/c/delugefs")
        #expect(KeyRing.directory(configHome: "relative", home: "/h") == "/h/.config/delugefs")
        #expect(KeyRing.directory(configHome: nil, home: nil) == nil)
    }
}
