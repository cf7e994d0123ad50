import Catalog
import SystemPackage
import Testing
import Volume

struct ContentTests {
    private let nodes = (1...4).map { NodeID(high: 7, low: UInt64($0)) }

    @Test func contentStatesAreListedLeastRecentlyUsedFirst() throws {
        try withCatalog { catalog in
            let extents = try (1...3).map { try extent(UInt8($0)) }
            try catalog.perform { transaction in
                for (index, extent) in extents.enumerated() {
                    try transaction.setContentState(extent, .cached, at: UInt64(10 + index))
                }
                try transaction.touchContent(extents[0].root, at: 50)
                try transaction.setContentState(extents[2], .partial, verified: [1, 2], at: 60)
                try transaction.setVerified(extents[2].root, [3])
                // Not partial: there is nothing to keep.
                try transaction.setVerified(extents[1].root, [3])
            }
            try catalog.read { (reader: Reader) throws in
                #expect(
                    try reader.contents(in: .cached, limit: 9).map(\.extent)
                        == [extents[1], extents[0]])
                #expect(try reader.content(extents[2].root)?.verified == [3])
                #expect(try reader.content(extents[1].root)?.verified == nil)
                #expect(try reader.content(extent(9).root) == nil)
            }
        }
    }

    @Test func missingCopiesAreCounted() throws {
        try withCatalog { catalog in
            let extents = try (1...3).map { try extent(UInt8($0)) }
            let file = try catalog.make("f")
            try catalog.perform { transaction in
                _ = try transaction.setContent(
                    file.ino, .extents(Array(extents[..<2])), modified: time(1), now: time(1))
                for node in nodes[..<2] {
                    try transaction.setHolder(of: extents[0], node, .stored, since: 1)
                }
                try transaction.setHolder(of: extents[1], nodes[0], .stored, since: 1)
                try transaction.setHolder(of: extents[1], nodes[1], .cached, since: 2)
                try transaction.setHolder(of: extents[1], nodes[2], .cloning, since: 3)
                // No file has it.
                try transaction.setHolder(of: extents[2], nodes[2], .stored, since: 1)
            }
            /// Nodes 0 and 1 are in one machine, 2 and 3 in another; all copies of node 0 are asked
            /// for by node 3.
            func deviating(
                _ online: [Int], absent: Int? = nil, uncounted: [Int] = [], own: Int = 3
            ) throws -> [Extent] {
                var found: [Extent] = []
                let places = online.map {
                    (
                        nodes[$0],
                        CopyRule.Place(
                            machine: "m\($0 / 2)", isOnline: $0 != absent,
                            counts: !uncounted.contains($0))
                    )
                }
                let rule = CopyRule(
                    places: Dictionary(uniqueKeysWithValues: places), copies: 2, own: nodes[own])
                var number: Int64? = 0
                while let after = number {
                    number = try catalog.read { reader in
                        let page = try reader.deviating(from: rule, after: after, limit: 1)
                        for number in page.found {
                            found.append(
                                try #require(try reader.holding(number, copies: 2)).extent)
                        }
                        return page.next
                    }
                }
                return found
            }
            #expect(try deviating([0, 1]) == [extents[1]])
            // Two disks of one machine, where there is another.
            #expect(try deviating([0, 1, 2, 3]) == Array(extents[..<2]))
            #expect(try deviating([0, 1], absent: 0) == [extents[1]])
            #expect(try deviating([0, 1], uncounted: [1]) == Array(extents[..<2]))
            #expect(try deviating([1]) == Array(extents[..<2]))
            #expect(try deviating([]) == Array(extents[..<2]))
            // Too many, which is the business of who has one.
            try catalog.perform { transaction in
                try transaction.setHolder(of: extents[0], nodes[2], .stored, since: 1)
                try transaction.setHolder(of: extents[1], nodes[2], .stored, since: 1)
            }
            #expect(try deviating([0, 1, 2, 3]).isEmpty)
            #expect(try deviating([0, 1, 2, 3], own: 2) == [extents[0]])
            #expect(try deviating([0, 1, 2, 3], uncounted: [0], own: 0) == Array(extents[..<2]))
            let holdings = try catalog.read { try $0.holdings(after: 0, limit: 9, copies: 2) }
            #expect(holdings.map(\.extent) == extents)
            #expect(holdings.map(\.isReferenced) == [true, true, false])
            let holding = try catalog.read { try $0.holding(holdings[1].number, copies: 2) }
            #expect(holding?.holders.map(\.state) == [.stored, .cached, .stored])
        }
    }

    @Test func holdersAndContentsAreForgotten() throws {
        try withCatalog { catalog in
            let extents = try (1...3).map { try extent(UInt8($0)) }
            let file = try catalog.make("f")
            _ = try catalog.perform { tx in
                _ = try tx.setContent(
                    file.ino, .extents(Array(extents[..<2])), modified: time(1), now: time(1))
                for node in nodes[..<2] {
                    try tx.setHolder(of: extents[0], node, .stored, since: 1)
                }
                try tx.setHolder(of: extents[2], nodes[2], .stored, since: 1)
            }
            try catalog.perform { try $0.clearHolders(nodes[2]) }
            #expect(try catalog.perform { try $0.forgetContents(after: 0, limit: 9) } == nil)
            #expect(
                try catalog.read { try $0.holdings(after: 0, limit: 9, copies: 2) }.map(\.extent)
                    == Array(extents[..<2]))
            try catalog.perform { try $0.setHolder(of: extents[0], nodes[0], nil, since: 9) }
            #expect(
                try catalog.read { try $0.holders(of: extents[0].root) }.map(\.node) == [nodes[1]])
        }
    }

    @Test func changesOfHoldersAndReferencesAreNoted() throws {
        try withCatalog { catalog in
            let (one, other) = (try extent(1), try extent(2))
            let file = try catalog.make("f")
            try catalog.perform {
                try $0.setHolder(of: one, nodes[0], .stored, since: 1)
                try $0.setHolder(of: other, nodes[0], .stored, since: 1)
            }
            let numbers = try catalog.read { try $0.holdings(after: 0, limit: 9, copies: 2) }.map(
                \.number)
            #expect(catalog.takeContentChanges() == .these(Set(numbers)))
            #expect(catalog.takeContentChanges() == .these([]))
            func setContent(_ content: Content) throws {
                _ = try catalog.perform {
                    try $0.setContent(file.ino, content, modified: time(1), now: time(1))
                }
            }
            try setContent(.extents([one]))
            #expect(catalog.takeContentChanges() == .these([numbers[0]]))
            // The file has it no more: that is a change too.
            try setContent(.inline([1]))
            #expect(catalog.takeContentChanges() == .these([numbers[0]]))
            try catalog.perform { try $0.clearHolders(nodes[0]) }
            #expect(catalog.takeContentChanges() == .all)
        }
    }

    @Test func localContentIsCountedWithoutAQuery() throws {
        let seed = newSeed()
        var random = SeededGenerator(seed: seed)
        try withDirectory { directory in
            var catalog = try openCatalog(directory)
            try makeRoot(catalog)
            var states: [UInt8: ContentState] = [:]
            func expected() throws -> [UInt64] {
                let stored = try states.filter { $0.value == .stored }.map { try extent($0.key) }
                let cached = try states.filter { $0.value == .cached }.map { try extent($0.key) }
                return [
                    UInt64(stored.count), stored.reduce(0) { $0 + $1.length },
                    UInt64(cached.count), cached.reduce(0) { $0 + $1.length },
                ]
            }
            func counted() -> [UInt64] {
                let local = catalog.local
                return [
                    local.stored.count, local.stored.bytes, local.cached.count, local.cached.bytes,
                ]
            }
            for _ in 0..<200 {
                let byte = UInt8.random(in: 1...20, using: &random)
                let state = try #require(
                    ContentState(rawValue: Int64.random(in: 0...4, using: &random)))
                try catalog.perform {
                    try $0.setContentState(try extent(byte), state, at: 1)
                }
                states[byte] = state
                // What is taken back was never there.
                try? catalog.perform {
                    try $0.setContentState(try extent(byte), .stored, at: 1)
                    throw Errno.ioError
                }
            }
            #expect(counted() == (try expected()), "seed \(seed)")
            catalog.close()
            catalog = try openCatalog(directory)
            defer { catalog.close() }
            #expect(counted() == (try expected()), "seed \(seed)")
        }
    }

    @Test func aWrongLengthThatWasClaimedFirstDoesNotWin() throws {
        try withCatalog { catalog in
            let right = try extent(1)
            let wrong = Extent(root: right.root, length: right.length + 1)
            let file = try catalog.make("f")
            try catalog.perform { transaction in
                try transaction.setHolder(of: wrong, nodes[0], .stored, since: 1)
                try transaction.setContentState(wrong, .partial, verified: [0], at: 1)
                _ = try transaction.setContent(
                    file.ino, .extents([right]), modified: time(1), now: time(1))
            }
            try catalog.read { (reader: Reader) throws in
                #expect(try reader.content(of: file.ino) == .extents([right]))
                let entry = try #require(try reader.content(right.root))
                #expect(entry.extent == right)
                #expect(entry.state == .absent)
                #expect(entry.verified == nil)
            }
            try catalog.perform { transaction in
                try transaction.setContentState(right, .stored, at: 1)
                // What names it by another length says nothing.
                try transaction.setHolder(of: wrong, nodes[1], .stored, since: 1)
                #expect(throws: Errno.invalidArgument) {
                    try transaction.setContentState(wrong, .partial, verified: [0], at: 1)
                }
            }
            #expect(
                try catalog.read { try $0.holders(of: right.root) }.map(\.node) == [nodes[0]])
            // What is complete has proved its length.
            #expect(throws: Errno.ioError) {
                try catalog.perform {
                    _ = try $0.setContent(
                        file.ino, .extents([wrong]), modified: time(2), now: time(2))
                }
            }
            #expect(try catalog.read { try $0.content(right.root) }?.state == .stored)
        }
    }

    @Test func aLogThatSaysSomethingElseThanTheStateIsFound() throws {
        try withCatalog { catalog in
            let extents = try (1...6).map { try extent(UInt8($0)) }
            try catalog.perform { transaction in
                try transaction.setContentState(extents[0], .stored, at: 1)
                try transaction.setHolder(of: extents[0], nodes[0], .stored, since: 1)
                try transaction.setContentState(extents[1], .cached, at: 1)
                try transaction.setHolder(of: extents[1], nodes[0], .cached, since: 1)
                // Stored and never said; said by another node alone.
                try transaction.setContentState(extents[2], .stored, at: 1)
                try transaction.setHolder(of: extents[2], nodes[1], .stored, since: 1)
                try transaction.setContentState(extents[3], .stored, at: 1)
                try transaction.setHolder(of: extents[3], nodes[0], .cached, since: 1)
                // A clone that a crash ended; what is not here.
                try transaction.setContentState(extents[4], .partial, at: 1)
                try transaction.setHolder(of: extents[4], nodes[0], .cloning, since: 1)
                try transaction.setHolder(of: extents[5], nodes[0], .stored, since: 1)
            }
            let found = try catalog.read { try $0.misstated(by: nodes[0]) }
            #expect(Set(found) == Set(extents[2...]))
        }
    }

    @Test func logsHaveNoGaps() throws {
        try withCatalog { catalog in
            func append(_ epoch: UInt64, _ number: UInt64) throws {
                let entry = HolderLogEntry(
                    epoch: epoch, number: number, entry: [UInt8(number)], chain: [2],
                    signature: [])
                try catalog.perform { try $0.appendLog(entry, of: nodes[0]) }
            }
            try append(1, 1)
            try append(1, 2)
            #expect(throws: Errno.invalidArgument) { try append(1, 4) }
            #expect(throws: Errno.invalidArgument) { try append(1, 2) }
            try append(2, 1)
            #expect(throws: Errno.invalidArgument) { try append(1, 3) }
            #expect(try catalog.read { try $0.logHead(of: nodes[0]) }?.epoch == 2)
            #expect(try catalog.read { try $0.logHead(of: nodes[1]) } == nil)
            let entries = try catalog.read {
                try $0.logEntries(of: nodes[0], epoch: 1, from: 2, limit: 9)
            }
            #expect(entries.map(\.entry) == [[2]])
        }
    }

    @Test func nodesAreRememberedWithWhatTheySay() throws {
        try withCatalog { catalog in
            let description = NodeDescription(name: "disk", machine: "box")
            try catalog.perform {
                try $0.setNode(nodes[0], description)
                try $0.setNodeInfo(nodes[0], seen: 99, info: [1])
            }
            let entry = try #require(try catalog.read { try $0.nodes() }.last)
            #expect(entry.id == nodes[0])
            #expect(entry.description == description)
            #expect(entry.seen == 99)
            #expect(entry.info == [1])
            try catalog.perform { try $0.setNode(nodes[0], nil) }
            #expect(try catalog.read { try $0.nodeDescriptions() }.isEmpty)
        }
    }

    @Test func settingsSurviveARestart() throws {
        try withDirectory { directory in
            let stamp = Stamp(milliseconds: 5, counter: 6, node: NodeID(high: 7, low: 8))
            var catalog = try openCatalog(directory)
            try catalog.perform {
                try $0.setSettings(settings)
                try $0.setHorizon(stamp)
                try $0.setMeta("mine", [1, 2])
                try $0.setMeta("other", [3])
                try $0.setMeta("other", nil)
            }
            catalog.close()
            catalog = try openCatalog(directory)
            defer { catalog.close() }
            #expect(try catalog.read { try $0.settings() } == settings)
            #expect(try catalog.read { try $0.horizon() } == stamp)
            #expect(try catalog.read { try $0.meta("mine") } == [1, 2])
            #expect(try catalog.read { try $0.meta("other") } == nil)
        }
    }
}
