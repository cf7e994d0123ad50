import Testing

/// The arrows of `ARCHITECTURE.md`, as imports.
@Suite("Targets depend one way")
struct TargetTests {
    /// What a target may import of ours. Adapters do not know each other.
    private static let arrows: [String: Set<String>] = [
        "Volume": [],
        "Simulation": ["Volume"],
        "FUSE": ["CFUSE"],
        "Catalog": ["Volume"],
        "History": ["Volume", "CGit"],
        "Swarm": ["Volume", "CTorrent"],
        "Discovery": ["CAvahi"],
        "Mesh": ["Volume"],
        "Store": ["Volume", "CStore"],
        "Mount": ["Volume", "FUSE", "Catalog", "Store"],
        "Node": [
            "Volume", "FUSE", "Catalog", "History", "Swarm", "Discovery", "Mesh", "Store", "Mount",
        ],
        "delugefs": ["Volume", "Mesh", "Node"],
    ]

    /// Libraries that one part alone knows, by the beginning of their modules' names.
    private static let confined: [(prefix: String, targets: Set<String>)] = [
        ("GRDB", ["Catalog"]),
        ("NIO", ["Mesh"]), ("X509", ["Mesh"]), ("SwiftASN1", ["Mesh"]),
        ("Crypto", ["Mesh", "Store"]),
        ("ArgumentParser", ["delugefs"]),
    ]

    /// Foundation brings half a second and 60 MB; these parts have no use for it.
    private static let withoutFoundation: Set<String> = ["Volume", "Simulation", "FUSE"]

    private static let imports: [(target: String, place: String, module: String)] =
        SourceTree.swift.flatMap { file, text in
            text.imports.compactMap { found in
                file.target.map { ($0, "\(file.path):\(found.line + 1)", found.module) }
            }
        }

    @Test("every import of ours is an arrow of the architecture")
    func arrows() {
        let ours = Set(Self.arrows.keys).union(["CFUSE", "CGit", "CTorrent", "CAvahi", "CStore"])
        for (target, place, module) in Self.imports where ours.contains(module) {
            guard let allowed = Self.arrows[target] else {
                Issue.record("\(place): \(target) is not in the architecture")
                continue
            }
            #expect(allowed.contains(module), "\(place): \(target) may not import \(module)")
        }
    }

    @Test("a C module is imported by exactly one target")
    func cModules() {
        let modules = Set(
            SourceTree.files.compactMap(\.target).filter {
                $0.count > 1 && $0.hasPrefix("C") && $0.dropFirst().first?.isUppercase == true
            })
        #expect(!modules.isEmpty)
        for module in modules {
            let importers = Set(Self.imports.filter { $0.module == module }.map(\.target))
            #expect(importers.count == 1, "\(module) is imported by \(importers.sorted())")
        }
    }

    @Test("a library is known to the part that wraps it")
    func confinedLibraries() {
        for (target, place, module) in Self.imports {
            for (prefix, targets) in Self.confined where module.hasPrefix(prefix) {
                #expect(targets.contains(target), "\(place): \(target) may not import \(module)")
            }
        }
    }

    @Test("the core and the FUSE server do without Foundation")
    func noFoundation() {
        for (target, place, module) in Self.imports where Self.withoutFoundation.contains(target) {
            #expect(!module.hasPrefix("Foundation"), "\(place)")
        }
    }
}
