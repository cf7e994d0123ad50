import CModel
import Glibc

/// One file of the table of open files, on one side: is brought into a state, then something is done
/// to it, and what everybody who has it open sees is put into words.
///
/// Of one thread.
final class OpenFileCell {
    /// What serves the bytes, and who has them open.
    enum State: String, CaseIterable, Sendable {
        case inline, inlineReader, inlineBehindReader
        case published, reader, readerMappedShared, readerMappedPrivate, twinReader
        case publishedBehindReader, changedBehindReader
        case writer, mappedWriter, closed, beingHashed
        case extents, overlayWriter, overlayReaders, large, largeReader
        case temporary, unlinkedReader, unlinkedWriter

        var size: Int {
            switch self {
            case .inline, .inlineReader, .inlineBehindReader: 3000
            // More than is copied while the kernel waits for its answer.
            case .large, .largeReader: 2 << 20
            case .beingHashed: 16 << 20
            // More than is copied for a writer: changed blocks are kept beside.
            case .extents, .overlayWriter, .overlayReaders: (64 << 20) + 12_345
            default: 40_000
            }
        }

        /// Its bytes are the file's own until it is closed: they cannot have been published before.
        var isNewborn: Bool {
            switch self {
            case .writer, .mappedWriter, .closed, .beingHashed, .temporary, .unlinkedWriter: true
            default: false
            }
        }
    }

    enum Action: String, CaseIterable, Sendable {
        case read, openForWriting, write, append, truncatingOpen, shrink, grow, shrinkOpen, direct,
            map, punch
    }

    private static let none: Int32 = -1
    private static let window = 16 << 10
    private static let page = 4096
    /// Files get a time before this; what shows a later one was changed by the test.
    private static let ownTimesEnd = 1_000_000_000

    let state: State
    let action: Action
    /// What was seen, step by step.
    private(set) var seen: [String] = []
    private let number: UInt64
    private let directory: String
    private let origin: String
    private var path: String
    private var early = none
    private var twin = none
    private var opened = none
    private var mapping: UnsafeMutableRawPointer?
    private var ownMapping: UnsafeMutableRawPointer?
    private var ends: [Int32] = [none, none]
    /// Its start is on a page, as direct reads and writes need it.
    private let buffer = UnsafeMutableRawPointer.allocate(byteCount: window, alignment: page)

    /// - Parameters:
    ///   - number: no two files have the same bytes.
    ///   - origin: where it is made and published; nil: in the same directory.
    init(
        _ state: State, _ action: Action, number: Int, in directory: String,
        from origin: String? = nil
    ) throws {
        self.state = state
        self.action = action
        self.number = UInt64(number)
        self.directory = directory
        path = "\(directory)/\(state)-\(action)"
        self.origin = "\(origin ?? directory)/\(state)-\(action)"
        guard pipe(&ends) == 0 else { throw Failure("pipe: \(errno)") }
    }

    deinit {
        for file in [early, twin, opened] + ends where file != Self.none { close(file) }
        for mapping in [mapping, ownMapping] where mapping != nil { munmap(mapping, Self.window) }
        buffer.deallocate()
    }

    // MARK: Into the state

    /// What has to be there before everything is published.
    func make() throws {
        guard !state.isNewborn else { return }
        let file = try open(origin, O_RDWR | O_CREAT)
        try fill(file)
        if state == .inlineBehindReader || state == .publishedBehindReader
            || state == .changedBehindReader
        {
            early = try open(path, O_RDONLY)
        }
        close(file)
        guard state == .twinReader else { return }
        let copy = try open("\(origin).twin", O_RDWR | O_CREAT)
        try fill(copy)
        close(copy)
    }

    /// What has to be done between that and another time.
    func change() throws {
        guard state == .extents || state == .changedBehindReader else { return }
        let file = try open(path, O_RDWR)
        try put("change", file, 5000)
        try makeOld(file)
        close(file)
    }

    func enter() throws {
        switch state {
        case .inline, .inlineBehindReader, .published, .large, .publishedBehindReader,
            .changedBehindReader, .extents:
            break
        case .inlineReader, .reader, .largeReader: early = try open(path, O_RDONLY)
        case .readerMappedShared, .readerMappedPrivate:
            early = try open(path, O_RDONLY)
            mapping = try map(
                early, PROT_READ, state == .readerMappedShared ? MAP_SHARED : MAP_PRIVATE)
        case .twinReader:
            // The kernel reads the one by itself, so not the other.
            twin = try open("\(path).twin", O_RDONLY)
            early = try open(path, O_RDONLY)
        case .writer, .closed, .beingHashed, .mappedWriter, .unlinkedWriter:
            early = try open(path, O_RDWR | O_CREAT)
            try fill(early)
        case .overlayWriter, .overlayReaders:
            early = try open(path, O_RDWR)
            try put("early", early, 50)
            try makeOld(early)
        case .temporary:
            early = try open(directory, cmodel_o_tmpfile | O_RDWR)
            try fill(early)
        case .unlinkedReader: early = try open(path, O_RDONLY)
        }
        try leave()
        look("before")
    }

    /// The rest of `enter`: who closes it, or takes its name away.
    private func leave() throws {
        switch state {
        case .closed, .beingHashed: closeEarly()
        case .mappedWriter:
            mapping = try map(early, PROT_READ | PROT_WRITE, MAP_SHARED)
            closeEarly()
        case .overlayReaders:
            let reader = try open(path, O_RDONLY)
            closeEarly()
            early = reader
        case .unlinkedReader, .unlinkedWriter:
            guard unlink(path) == 0 else { throw Failure("unlink \(path): \(errno)") }
            path = "/proc/self/fd/\(early)"
        case .temporary: path = "/proc/self/fd/\(early)"
        default: break
        }
    }

    // MARK: The action

    func act() throws {
        let size = state.size
        switch action {
        case .read:
            try reopen(O_RDONLY)
        case .openForWriting:
            try reopen(O_RDWR)
        case .write:
            try reopen(O_RDWR)
            say("write", pwrite(opened, "WRITTEN", 7, 100))
            say("write at the end", pwrite(opened, "WRITTEN", 7, size + 10))
        case .append:
            try reopen(O_WRONLY | O_APPEND)
            say("append", Glibc.write(opened, "APPENDED", 8))
            say("append", Glibc.write(opened, "APPENDED", 8))
        case .truncatingOpen:
            try reopen(O_RDWR | O_TRUNC)
            look("empty")
            fillBuffer()
            say("write", Glibc.write(opened, buffer, 5000))
        case .shrink:
            say("truncate", truncate(path, size / 2 + 1))
        case .grow:
            say("truncate", truncate(path, size + 5000))
        case .shrinkOpen:
            try reopen(O_RDWR)
            say("truncate", ftruncate(opened, size / 2 + 1))
            look("shorter")
            say("truncate", ftruncate(opened, size))
        case .direct:
            try reopen(O_RDWR | cmodel_o_direct)
            let count = pread(opened, buffer, Self.page, 0)
            note("read: \(count < 0 ? ModelWorld.name(errno) : digest(count))")
            fillBuffer()
            say("write", pwrite(opened, buffer, Self.page, Self.page))
        case .map:
            try reopen(O_RDWR)
            let memory = try map(opened, PROT_READ | PROT_WRITE, MAP_SHARED)
            ownMapping = memory
            say("store", cmodel_store(ends[1], ends[0], memory + 200, "STORED", 6))
        case .punch:
            try reopen(O_RDWR)
            say("punch", cmodel_allocate(opened, 3, 1000, 10_000))
        }
        look("after", withTimes: action != .map)
    }

    /// Whoever did it closes the file; who had it open before goes on.
    func finish() {
        if let memory = ownMapping {
            say("msync", msync(memory, Self.window, MS_SYNC))
            munmap(memory, Self.window)
            ownMapping = nil
        }
        if opened != Self.none { close(opened) }
        opened = Self.none
        look("closed")
        if state == .mappedWriter, let mapping {
            say("store", cmodel_store(ends[1], ends[0], mapping + 70, "LATER", 5))
        } else if early != Self.none, fcntl(early, F_GETFL) & O_ACCMODE != O_RDONLY {
            say("write", pwrite(early, "LATER", 5, 70))
        }
        look("later", withTimes: state != .mappedWriter)
    }

    /// Looked at again, after it was published, for example. A store's time is the kernel's to choose.
    func lookAgain(_ when: String) { look(when, withTimes: state != .mappedWriter) }

    /// Nobody has it open any more.
    func end() {
        if path.hasPrefix("/proc") { path = "" }
        if mapping != nil { munmap(mapping, Self.window) }
        mapping = nil
        for file in [early, twin] where file != Self.none { close(file) }
        (early, twin) = (Self.none, Self.none)
        look("ended")
    }

    // MARK: Words

    private func note(_ words: String) { seen.append(words) }

    private func say(_ what: String, _ result: some SignedInteger) {
        let error = result < -1 ? Int32(-result) : errno
        note("\(what): \(result < 0 ? ModelWorld.name(error) : "\(result)")")
    }

    private func digest(_ count: Int) -> String {
        String(
            cmodel_digest(buffer.assumingMemoryBound(to: UInt8.self), UInt64(count)), radix: 16)
    }

    /// What all see who can, in one line.
    private func look(_ when: String, withTimes: Bool = true) {
        var words = when
        for (name, file) in [("early", early), ("opened", opened)] where file != Self.none {
            words += " | \(name) \(look(file, withTimes: withTimes))"
        }
        if let mapping { words += " | mapped \(look(mapping: mapping))" }
        if let ownMapping { words += " | own \(look(mapping: ownMapping))" }
        if !path.isEmpty {
            let file = Glibc.open(path, O_RDONLY | O_CLOEXEC)
            words +=
                " | path \(file < 0 ? ModelWorld.name(errno) : look(file, withTimes: withTimes))"
            if file >= 0 { close(file) }
        }
        note(words)
    }

    private func look(_ file: Int32, withTimes: Bool) -> String {
        var status = stat()
        guard fstat(file, &status) == 0 else { return ModelWorld.name(errno) }
        var words = "\(status.st_size) bytes, \(status.st_nlink) links"
        if withTimes { words += status.st_mtim.tv_sec < Self.ownTimesEnd ? ", old" : ", new" }
        guard fcntl(file, F_GETFL) & O_ACCMODE != O_WRONLY else { return words }
        // Aligned, because one of them reads directly.
        let last = max(0, status.st_size - Self.window / 2) / Self.page * Self.page
        for offset in [0, last] {
            let count = pread(file, buffer, Self.window, offset)
            words += count < 0 ? " \(ModelWorld.name(errno))" : " \(count):\(digest(count))"
        }
        return words
    }

    /// The part that is in the file.
    private func look(mapping: UnsafeMutableRawPointer) -> String {
        var status = stat()
        guard stat(path, &status) == 0 else { return ModelWorld.name(errno) }
        let count = min(Self.window, status.st_size)
        guard count > 0 else { return "nothing" }
        let loaded = cmodel_load(ends[1], ends[0], mapping, buffer, UInt64(count))
        return loaded < 0
            ? ModelWorld.name(Int32(-loaded)) : "\(loaded):\(digest(Int(loaded)))"
    }

    // MARK: System calls

    private func open(_ path: String, _ flags: Int32) throws -> Int32 {
        let file = Glibc.open(path, flags | O_CLOEXEC, 0o644)
        guard file >= 0 else { throw Failure("open \(path), \(flags): \(ModelWorld.name(errno))") }
        return file
    }

    private func reopen(_ flags: Int32) throws { opened = try open(path, flags) }

    private func closeEarly() {
        close(early)
        early = Self.none
    }

    private func map(_ file: Int32, _ protection: Int32, _ kind: Int32) throws
        -> UnsafeMutableRawPointer
    {
        guard let address = mmap(nil, Self.window, protection, kind, file, 0),
            address != MAP_FAILED
        else { throw Failure("mmap \(path): \(ModelWorld.name(errno))") }
        // The pages are there before somebody else writes.
        _ = cmodel_load(ends[1], ends[0], address, buffer, UInt64(Self.page))
        return address
    }

    private func put(_ text: String, _ file: Int32, _ offset: Int) throws {
        guard pwrite(file, text, text.utf8.count, offset) == text.utf8.count else {
            throw Failure("write \(path): \(ModelWorld.name(errno))")
        }
    }

    private func fillBuffer() {
        cmodel_fill(
            buffer.assumingMemoryBound(to: UInt8.self), UInt64(Self.window), UInt8(number & 0xff))
        buffer.storeBytes(of: number, as: UInt64.self)
    }

    /// Its beginning is its own; the rest of a large one is a hole up to its end.
    private func fill(_ file: Int32) throws {
        fillBuffer()
        let size = state.size
        let offsets =
            size > 1 << 20
            ? [0, size - Self.window] : Array(stride(from: 0, to: size, by: Self.window))
        for offset in offsets {
            let count = min(Self.window, size - offset)
            guard pwrite(file, buffer, count, offset) == count else {
                throw Failure("write \(path): \(ModelWorld.name(errno))")
            }
        }
        try makeOld(file)
    }

    private func makeOld(_ file: Int32) throws {
        let time = timespec(tv_sec: 981_173_106, tv_nsec: 0)
        guard futimens(file, [time, time]) == 0 else {
            throw Failure("times of \(path): \(ModelWorld.name(errno))")
        }
    }
}
