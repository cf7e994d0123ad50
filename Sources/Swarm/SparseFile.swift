import CTorrent
import Glibc
import Volume

/// The file a download fills: as long as the content, holes where nothing has arrived.
enum SparseFile {
    /// Creates the file if needed, gives it its length, and makes holes of the pieces that are all
    /// zero: those are complete without any transfer.
    ///
    /// - Returns: `verified` plus the zero pieces.
    static func prepare(
        path: String, extent: Extent, layer: [UInt8], verified: Bitfield
    ) throws -> Bitfield {
        let descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw failure() }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw failure() }
        if UInt64(status.st_size) != extent.length {
            guard ftruncate(descriptor, off_t(extent.length)) == 0 else { throw failure() }
        }
        return punchZeroPieces(descriptor, extent: extent, layer: layer, verified: verified)
    }

    private static func punchZeroPieces(
        _ descriptor: CInt, extent: Extent, layer: [UInt8], verified: Bitfield
    ) -> Bitfield {
        var complete = verified
        guard extent.pieceCount > 1 else { return complete }
        let zero = PieceLayer.zeroPieceHash(of: extent)
        // The last piece may be short, and a short piece of zeros has another hash.
        for piece in 0..<(extent.pieceCount - 1) where !verified[piece] {
            guard layer[(piece * 32)..<(piece * 32 + 32)].elementsEqual(zero) else { continue }
            // What lies there may be left from an earlier attempt; a file system that cannot
            // punch holes gets the piece from a peer instead.
            let result = ctorrent_punch_hole(
                descriptor, UInt64(piece) * extent.pieceBytes, extent.pieceBytes)
            guard result == CTORRENT_OK else { break }
            complete.insert(piece)
        }
        return complete
    }

    private static func failure() -> SwarmError {
        let code = errno
        if code == ENOSPC || code == EDQUOT { return .noSpace }
        return .file(errno: code, message: String(cString: strerror(code)))
    }
}
