extension FileName {
    /// The name as it stands in a Git tree: the same bytes, except where Git forbids them.
    ///
    /// `%` doubles, because names that begin with it are ours (`%dir` and the shards `%xx`). The first
    /// byte of what `git fsck --strict` takes for `.git`, `.gitmodules` or `.gitattributes`, in the
    /// disguises that HFS+ and NTFS accept, at the start or after a backslash, becomes `%XX`.
    public var escaped: [UInt8] {
        var out: [UInt8] = []
        out.reserveCapacity(bytes.count)
        for (i, byte) in bytes.enumerated() {
            if byte == 0x25 {
                out += [0x25, 0x25]
            } else if i == 0 || bytes[i - 1] == 0x5C, GitForbidden.matches(bytes[i...]) {
                PercentEscape.append(byte, to: &out)
            } else {
                out.append(byte)
            }
        }
        return out
    }

    /// Nil unless the bytes are exactly what `escaped` gives for some name.
    public init?(escaped: [UInt8]) {
        guard escaped.count <= 3 * Limits.nameBytesMax else { return nil }
        var plain: [UInt8] = []
        var i = 0
        while i < escaped.count {
            if escaped[i] != 0x25 {
                plain.append(escaped[i])
                i += 1
            } else if i + 1 < escaped.count, escaped[i + 1] == 0x25 {
                plain.append(0x25)
                i += 2
            } else {
                guard i + 2 < escaped.count,
                    let byte = PercentEscape.byte(escaped[i + 1], escaped[i + 2])
                else { return nil }
                plain.append(byte)
                i += 3
            }
        }
        self.init(plain)
        guard self.escaped == escaped else { return nil }
    }
}

/// What Git refuses in a tree: `fsck_tree`, `is_hfs_dot_generic`, `is_ntfs_dot_generic` (Git 2.39,
/// fsck.c, utf8.c, path.c). Where Git's answer hangs on malformed UTF-8, more is taken as forbidden.
private enum GitForbidden {
    static func matches(_ name: ArraySlice<UInt8>) -> Bool {
        // Nearly every name ends here: forbidden ones start with a dot, g, a tilde, or what HFS+ skips.
        switch name.first {
        case 0x2E, 0x67, 0x47, 0x7E, 0xE2, 0xEF: break
        default: return false
        }
        let folded = name.map { (0x41...0x5A).contains($0) ? $0 + 0x20 : $0 }
        return ntfs(folded) || hfs(folded)
    }

    private static let reserved = ["git", "gitmodules", "gitattributes"]

    /// A dot file, or its short name, followed by nothing but dots and blanks.
    private static func ntfs(_ name: [UInt8]) -> Bool {
        for word in reserved where name.starts(with: ".".utf8) {
            if name.dropFirst().starts(with: word.utf8), blank(name.dropFirst(1 + word.utf8.count))
            {
                return true
            }
        }
        return shortName(name)
    }

    /// `git~1`; `gitmod~1` to `~4`; the fall-backs made of a hash, `gi7eba~1` and `gi7d29~1`, where a
    /// longer number shortens the letters, down to none, so that eight characters remain.
    private static func shortName(_ name: [UInt8]) -> Bool {
        guard let tilde = name.firstIndex(of: 0x7E) else { return false }
        let stem = name[..<tilde]
        var end = tilde + 1
        while end < name.count, (0x30...0x39).contains(name[end]) { end += 1 }
        guard end > tilde + 1, blank(name[end...]) else { return false }
        return ["git", "gitmod", "gitatt"].contains { stem.elementsEqual($0.utf8) }
            || end == 8 && ["gi7eba", "gi7d29"].contains { $0.utf8.starts(with: stem) }
    }

    private static func blank(_ rest: ArraySlice<UInt8>) -> Bool {
        for byte in rest {
            if byte == 0x3A || byte == 0x5C { return true }
            if byte != 0x2E, byte != 0x20 { return false }
        }
        return true
    }

    /// HFS+ leaves out zero-width and direction marks when it compares names.
    private static func hfs(_ name: [UInt8]) -> Bool {
        var kept: [UInt8] = []
        var i = 0
        while i < name.count {
            if i + 2 < name.count, ignorable(name[i], name[i + 1], name[i + 2]) {
                i += 3
            } else {
                kept.append(name[i])
                i += 1
            }
        }
        return reserved.contains { word in
            guard kept.starts(with: ("." + word).utf8) else { return false }
            let rest = kept.dropFirst(1 + word.utf8.count)
            // Git ends a name at malformed UTF-8; any byte beyond ASCII is taken for that.
            return rest.first.map { $0 >= 0x80 } ?? true
        }
    }

    /// U+200C…200F, U+202A…202E, U+206A…206F, U+FEFF.
    private static func ignorable(_ a: UInt8, _ b: UInt8, _ c: UInt8) -> Bool {
        switch (a, b) {
        case (0xE2, 0x80): (0x8C...0x8F).contains(c) || (0xAA...0xAE).contains(c)
        case (0xE2, 0x81): (0xAA...0xAF).contains(c)
        case (0xEF, 0xBB): c == 0xBF
        default: false
        }
    }
}
