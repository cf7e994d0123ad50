import FoundationEssentials
import Glibc
import Mesh
import Synchronization
import SystemPackage
import Volume

/// Who this node is in which volume: key, authority, identity, names. Nothing is written before
/// `keep`.
final class Membership: Sendable {
    let key: VolumeKey
    let authority: VolumeAuthority
    let identity: NodeIdentity
    let machine: String
    let name: String
    private let hasName: Bool
    private let ring: KeyRing
    private let isNew: Bool
    /// Authorities that serve this id nearby, and one address of each; at most 64.
    private let authorities = Mutex<[String: String]>([:])
    private let twin = Atomic(false)

    init(_ configuration: Configuration, root: RootDirectory) throws {
        ring = KeyRing(directory: FilePath(configuration.configurationDirectory))
        var file: VolumeFile?
        if case .node(let known) = root.content { file = known }
        isNew = file == nil
        key = try Self.key(configuration, root.path, isNew: isNew, ring)
        authority = try VolumeAuthority(key: key)
        do {
            identity =
                isNew
                ? try NodeIdentity.generate(authority: authority)
                : try NodeIdentity.load(
                    at: root.path.appending("node.key"), authority: authority)
        } catch { throw NodeError("The identity of \(root.path) cannot be used: \(error)") }
        machine = file?.machine ?? configuration.machine ?? Self.hostName()
        hasName = configuration.name != nil || file != nil
        name = configuration.name ?? file?.name ?? Self.derivedName(root.path, machine)
    }

    private static func key(
        _ configuration: Configuration, _ root: FilePath, isNew: Bool, _ ring: KeyRing
    ) throws -> VolumeKey {
        do {
            let given = try configuration.keyText.map {
                try VolumeKey(parsing: Array($0.utf8))
            }
            if configuration.create { return given ?? .generate() }
            if !isNew, let kept = try KeyRing.read(root.appending("key")) {
                if let given, given != kept {
                    throw NodeError(
                        wrongKey(
                            configuration.volume, ours: try VolumeAuthority(key: given).ca16,
                            theirs: try VolumeAuthority(key: kept).ca16))
                }
                return kept
            }
            if let key = try given ?? ring.key(volume: configuration.volume) { return key }
        } catch let error as NodeError { throw error } catch { throw NodeError("\(error)") }
        throw NodeError(
            "No key for volume \(configuration.volume) here. On a machine that has it run `delugefs key --root DIR`, then pass it with --key-file."
        )
    }

    static func wrongKey(_ volume: String, ours: String, theirs: String) -> String {
        "The key given is for another volume named \(volume) (ours \(ours), peers serve \(theirs))."
    }

    /// Another node announces this id, with its authority.
    func seen(_ authority: String, _ address: String) {
        authorities.withLock { if $0.count < 64 { $0[authority] = address } }
    }

    /// Somebody has the name that our node id gives.
    func noteTwin() { twin.store(true, ordering: .relaxed) }
    var hasTwin: Bool { twin.load(ordering: .relaxed) }

    /// An authority other than ours that serves this id, and an address.
    var foreign: (authority: String, address: String)? {
        authorities.withLock { $0.first { $0.key != authority.ca16 } }.map { ($0.key, $0.value) }
    }

    var anyone: (authority: String, address: String)? {
        authorities.withLock { $0.first }.map { ($0.key, $0.value) }
    }

    /// Writes key, identity and description into a new root, and the key for this user.
    func keep(_ root: FilePath, file: VolumeFile) throws {
        guard isNew else { return }
        do {
            try KeyRing.write(key, to: root.appending("key"))
            try identity.keep(at: root.appending("node.key"))
            try ring.keep(key, volume: file.volume)
            try file.save(root: root.string)
        } catch { throw NodeError("\(root) cannot be written: \(error)") }
    }

    /// A derived name that another node has already gets a number.
    func uniqueName(among names: [String]) -> String {
        guard !hasName, names.contains(name) else { return name }
        for number in 2... {
            let candidate = String(name.prefix(58)) + "-\(number)"
            if !names.contains(candidate) { return candidate }
        }
        return name
    }

    private static func hostName() -> String {
        var buffer = [CChar](repeating: 0, count: 256)
        gethostname(&buffer, 255)
        let text = buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
        return clean(String(decoding: text, as: UTF8.self), fallback: "machine")
    }

    /// From the disk's mount point: the last component above the root that is one, else the root's
    /// own parent.
    private static func derivedName(_ root: FilePath, _ machine: String) -> String {
        var path = root.removingLastComponent()
        guard let device = FileStatus(path)?.device else { return machine }
        while path.components.count > 1 {
            let parent = path.removingLastComponent()
            guard FileStatus(parent)?.device == device else { break }
            path = parent
        }
        let last = path.lastComponent?.string ?? ""
        return clean(
            path.components.count > 1 || !last.isEmpty ? "\(machine)-\(last)" : machine,
            fallback: machine)
    }

    private static func clean(_ text: String, fallback: String) -> String {
        let allowed = text.map { character in
            character.isASCII
                && (character.isLetter || character.isNumber || "._-".contains(character))
                ? character : "-"
        }
        let trimmed = String(String(allowed).drop { !($0.isLetter || $0.isNumber) }.prefix(63))
        return trimmed.isEmpty ? fallback : trimmed
    }
}
