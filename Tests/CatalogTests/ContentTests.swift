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
                let total = try reader.total(.cached)
                #expect(total == (2, 140_000))
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
            func missing(_ online: [NodeID]) throws -> [Extent: Int] {
                var found: [Extent: Int] = [:]
                var number: Int64? = 0
                while let after = number {
                    let page = try catalog.read {
                        try $0.underReplicated(online: online, target: 2, after: after, limit: 1)
                    }
                    for (extent, copies) in page.found { found[extent] = copies }
                    number = page.next
                }
                return found
            }
            #expect(try missing(nodes) == [extents[1]: 1])
            #expect(try missing([nodes[1]]) == [extents[0]: 1, extents[1]: 0])
            #expect(try missing([]) == [extents[0]: 0, extents[1]: 0])
            let holdings = try catalog.read { try $0.holdings(after: 0, limit: 9) }
            #expect(holdings.map(\.extent) == extents)
            #expect(holdings.map(\.isReferenced) == [true, true, false])
            #expect(holdings[1].holders.map(\.state) == [.stored, .cached, .cloning])

            try catalog.perform { try $0.clearHolders(nodes[2]) }
            #expect(try catalog.perform { try $0.forgetContents(after: 0, limit: 9) } == nil)
            #expect(
                try catalog.read { try $0.holdings(after: 0, limit: 9) }.map(\.extent)
                    == Array(extents[..<2]))
            try catalog.perform { try $0.setHolder(of: extents[0], nodes[0], nil, since: 9) }
            #expect(
                try catalog.read { try $0.holders(of: extents[0].root) }.map(\.node) == [nodes[1]])
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
