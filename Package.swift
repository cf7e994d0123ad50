// swift-tools-version: 6.2
import Foundation
import PackageDescription

/// A warning of ours is an error in debug builds, which is what the gate builds. Not in releases: a
/// newer compiler must not keep anyone from building one. What a dependency deprecates stays a
/// warning, because versions float.
let debug = BuildSettingCondition.when(configuration: .debug)

let strict: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .treatAllWarnings(as: .error, debug),
    .treatWarning("DeprecatedDeclaration", as: .warning, debug),
]
let strictC: [CSetting] = [
    .enableWarning("all"), .enableWarning("extra"), .treatAllWarnings(as: .error, debug),
]
let strictCXX: [CXXSetting] = [
    .enableWarning("all"), .enableWarning("extra"), .treatAllWarnings(as: .error, debug),
]

func product(_ name: String, _ package: String) -> Target.Dependency {
    .product(name: name, package: package)
}

let system = product("SystemPackage", "swift-system")
let logging = product("Logging", "swift-log")
let crypto = product("Crypto", "swift-crypto")

/// libtorrent's headers change their declarations with these; SwiftPM drops `-D` from pkg-config,
/// so they are restated here and checked with `#error` in the shim.
let torrentDefines: [CXXSetting] = [
    .define("TORRENT_LINKING_SHARED"), .define("BOOST_ASIO_ENABLE_CANCELIO"),
    .define("BOOST_ASIO_NO_DEPRECATED"), .define("TORRENT_USE_OPENSSL"),
    .define("TORRENT_USE_LIBCRYPTO"), .define("TORRENT_SSL_PEERS"),
    .define("OPENSSL_NO_SSL2"), .define("BOOST_ALL_NO_LIB"),
]

func library(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
    .target(name: name, dependencies: dependencies, swiftSettings: strict)
}

func tests(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .testTarget(name: name, dependencies: dependencies, swiftSettings: strict)
}

/// The pure core: builds and tests with no dependency at all (`make test-core`).
let core: [Target] = [
    library("Volume"),
    library("Simulation", ["Volume"]),
    tests("VolumeTests", ["Volume", "Simulation"]),
]

let adapters: [Target] = [
    .target(name: "CFUSE", cSettings: strictC),
    library("FUSE", ["CFUSE", system]),
    .systemLibrary(name: "CGit"),
    library("History", ["Volume", "CGit", system]),
    .target(
        name: "CTorrent", cxxSettings: torrentDefines + strictCXX,
        linkerSettings: [
            .linkedLibrary("torrent-rasterbar"), .linkedLibrary("ssl"), .linkedLibrary("crypto"),
        ]),
    library("Swarm", ["Volume", "CTorrent"]),
    .systemLibrary(name: "CAvahi"),
    library("Discovery", ["CAvahi"]),
    library(
        "Mesh",
        [
            "Volume", system, crypto,
            product("X509", "swift-certificates"), product("SwiftASN1", "swift-asn1"),
            product("NIOCore", "swift-nio"), product("NIOPosix", "swift-nio"),
            product("NIOHTTP1", "swift-nio"), product("NIOTLS", "swift-nio"),
            product("NIOSSL", "swift-nio-ssl"),
        ]),
    library(
        "Catalog",
        ["Volume", system, product("GRDB", "GRDB.swift"), product("GRDBSQLite", "GRDB.swift")]),
    .target(name: "CStore", cSettings: strictC),
    library("Store", ["Volume", "CStore", system, crypto]),
]

let composition: [Target] = [
    library("Mount", ["Volume", "FUSE", "Catalog", "Store", system, logging]),
    library(
        "Node",
        [
            "Volume", "Mount", "FUSE", "Catalog", "History", "Swarm", "Discovery", "Mesh", "Store",
            system, logging,
        ]),
    .executableTarget(
        name: "delugefs",
        dependencies: [
            "Node", "Mesh", system, logging,
            product("ArgumentParser", "swift-argument-parser"),
        ],
        swiftSettings: strict),
]

let adapterTests: [Target] = [
    tests("FUSETests", ["FUSE", "CFUSE", system]),
    tests("HistoryTests", ["History", "Volume", system]),
    tests("SwarmTests", ["Swarm", "Volume"]),
    tests("DiscoveryTests", ["Discovery"]),
    tests("MeshTests", ["Mesh", "Volume", system, crypto]),
    tests("CatalogTests", ["Catalog", "Store", "Volume", "Simulation", system]),
    tests("StoreTests", ["Store", "Volume", system]),
    tests("MountTests", ["Mount"]),
    tests(
        "NodeTests", ["Node", "Mount", "Catalog", "History", "Mesh", "Volume", system, logging]),
    .target(name: "CModel", path: "Tests/CModel", cSettings: strictC),
    tests("EndToEndTests", ["delugefs", "Simulation", "CModel"]),
    tests("HygieneTests", []),
]

let coreOnly = ProcessInfo.processInfo.environment["DELUGEFS_CORE_ONLY"] != nil

let package = Package(
    name: "delugefs",
    products: coreOnly
        ? [.library(name: "Volume", targets: ["Volume"])]
        : [
            .executable(name: "delugefs", targets: ["delugefs"]),
            .library(name: "FUSE", targets: ["FUSE"]),
        ],
    dependencies: coreOnly
        ? []
        : [
            .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
            .package(url: "https://github.com/apple/swift-asn1", from: "1.7.4"),
            .package(url: "https://github.com/apple/swift-certificates", from: "1.21.1"),
            .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
            .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
            .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
            .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
            .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
            .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
        ],
    targets: coreOnly ? core : core + adapters + composition + adapterTests,
    cxxLanguageStandard: .cxx17
)
