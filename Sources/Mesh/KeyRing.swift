import Glibc
public import SystemPackage

/// The volume keys that this user keeps: `${XDG_CONFIG_HOME:-$HOME/.config}/delugefs/ID.key`.
///
/// The directory is given by the caller. A key that is there is never overwritten: a different one
/// moves to `ID.<ca16>.key`.
public struct KeyRing: Sendable {
    public let directory: FilePath

    public init(directory: FilePath) { self.directory = directory }

    /// The directory by the environment's rule; nil when neither variable holds an absolute path.
    public static func directory(configHome: FilePath?, home: FilePath?) -> FilePath? {
        if let configHome, configHome.isAbsolute { return configHome.appending("delugefs") }
        guard let home, home.isAbsolute else { return nil }
        return home.appending(".config").appending("delugefs")
    }

    /// - Precondition: `volume` has passed the command line's rule for an ID.
    public func path(volume: String) -> FilePath { directory.appending("\(volume).key") }

    /// The kept key, nil when there is none.
    ///
    /// - Throws: `OwnerOnlyFileError`, `NotAKey`.
    public func key(volume: String) throws -> VolumeKey? {
        try Self.read(path(volume: volume))
    }

    /// Keeps the key as `ID.key`; one that was there and differs becomes `ID.<its ca16>.key`.
    ///
    /// - Throws: `OwnerOnlyFileError`; `NotAKey` when the file there holds something else, which is
    ///   then left alone.
    public func keep(_ key: VolumeKey, volume: String) throws {
        try createDirectory()
        let path = path(volume: volume)
        if let other = try Self.read(path) {
            if other == key { return }
            let aside = directory.appending("\(volume).\(try VolumeAuthority(key: other).ca16).key")
            if try Self.read(aside) == other {
                // Kept already under that name: the two names hold the same key.
                guard path.withPlatformString({ unlink($0) }) == 0 else {
                    throw OwnerOnlyFileError.failed(path, Errno(rawValue: errno))
                }
            } else {
                try OwnerOnlyFile.rename(path, to: aside)
            }
        }
        try Self.write(key, to: path)
    }

    /// A key from a file that is for its owner alone, such as `ROOT/key`; nil when there is none.
    public static func read(_ path: FilePath) throws -> VolumeKey? {
        do {
            let text = try OwnerOnlyFile.read(path, bytesMax: VolumeKey.textBytesMax)
            return try VolumeKey(parsing: text)
        } catch OwnerOnlyFileError.missing { return nil }
    }

    /// Writes a key file: the key, a newline, mode 0600.
    ///
    /// - Throws: `OwnerOnlyFileError.exists` when the name is taken.
    public static func write(_ key: VolumeKey, to path: FilePath) throws {
        try OwnerOnlyFile.create(path, contents: Array((key.exportedText + "\n").utf8))
    }

    private func createDirectory() throws {
        var missing: [FilePath] = []
        var path = directory
        while !path.isEmpty, path.withPlatformString({ access($0, F_OK) }) != 0 {
            missing.append(path)
            path = path.removingLastComponent()
        }
        for path in missing.reversed() {
            guard path.withPlatformString({ mkdir($0, 0o700) }) == 0 || errno == EEXIST else {
                throw OwnerOnlyFileError.failed(path, Errno(rawValue: errno))
            }
        }
    }
}
