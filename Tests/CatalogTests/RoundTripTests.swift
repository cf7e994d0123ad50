import Catalog
import Simulation
import SystemPackage
import Testing
import Volume

struct RoundTripTests {
    @Test func aCommitMakesAnotherNodeTheSame() throws {
        try withTwo { a, b, objects in
            let directory = try a.make("d", .directory)
            let file = try a.make("f", in: directory.ino)
            try a.make(
                "l", in: directory.ino,
                NewInode(body: .symlink(Array("f".utf8)), mode: 0o777, owner: .user))
            try a.make("p", NewInode(body: .fifo, mode: 0o600, owner: .root))
            let g = try name("g")
            try a.perform {
                _ = try $0.link(file.ino, .root, g, now: time(2))
                _ = try $0.setContent(
                    file.ino, .extents([extent(4)]), modified: time(3), now: time(3))
                _ = try $0.setXattr(file.ino, Array("user.x".utf8), [1], now: time(3))
                try $0.setSettings(settings)
                try $0.setNode($0.node, NodeDescription(name: "a", machine: "m"))
            }
            let first = try commit(a, objects)
            #expect(try a.read { try $0.isDirty() } == false)
            let effects = try pull(first, into: b, objects)
            #expect(effects.newContents?.count == 1)
            try expectSame(a, b)
            #expect(try b.read { try $0.applied() } == first)
            #expect(try b.read { try $0.settings() } == settings)
            #expect(try b.read { try $0.nodeDescriptions() }.count == 1)
            #expect(try b.read { try $0.orphans(limit: 5) }.isEmpty)
            // Nothing is left to commit, and what is committed is the same.
            #expect(try b.read { try $0.isDirty() } == false)
            #expect(try commit(b, objects) == first)
            // Change time: of the newest stamp.
            let stamp = try #require(try b.snapshot { try $0.record(file.id) }).newestStamp
            #expect(try b.get(file.ino).changed.seconds == Int64(stamp.milliseconds / 1000))
        }
    }

    @Test func theEffectsNameWhatTheKernelMustForget() throws {
        try withTwo { a, b, objects in
            let d = try a.make("d", .directory)
            let kept = try a.make("kept")
            let gone = try a.make("gone")
            let pinned = try a.make("pinned")
            _ = try a.perform {
                try $0.setContent(
                    kept.ino, .extents([extent(1)]), modified: time(1), now: time(1))
            }
            _ = try pull(commit(a, objects), into: b, objects)
            _ = try a.perform {
                try $0.setContent(kept.ino, .inline([1]), modified: time(2), now: time(2))
            }
            try a.move("kept", to: "moved", into: d.ino)
            for text in ["gone", "pinned"] {
                let victim = try name(text)
                _ = try a.perform { try $0.unlink(.root, victim, now: time(3)) }
            }
            let new = try a.make("new")
            let effects = try pull(commit(a, objects), into: b, objects, pinned: [pinned.ino])
            try expectSame(a, b)
            #expect(effects.contents == [kept.ino])
            #expect(effects.attributes.isSuperset(of: [kept.ino, d.ino, .root, pinned.ino]))
            #expect(!effects.attributes.contains(new.ino))
            #expect(effects.removed == [gone.ino])
            #expect(effects.orphaned == [pinned.ino])
            #expect(try b.get(pinned.ino).linkCount == 0)
            typealias Change = AppliedEffects.EntryChange
            let expected: Set<Change> = [
                Change(parent: .root, name: try name("kept"), before: kept.ino, after: nil),
                Change(parent: d.ino, name: try name("moved"), before: nil, after: kept.ino),
                Change(parent: .root, name: try name("gone"), before: gone.ino, after: nil),
                Change(parent: .root, name: try name("pinned"), before: pinned.ino, after: nil),
                Change(parent: .root, name: try name("new"), before: nil, after: new.ino),
            ]
            #expect(Set(effects.entries) == expected)
        }
    }

    @Test func anEditorsSaveGoesOnUnderTheOldIdEverywhere() throws {
        try withTwo { a, b, objects in
            let old = try a.make("doc")
            _ = try pull(commit(a, objects), into: b, objects)
            let new = try a.make("doc.tmp")
            let outcome = try a.move("doc.tmp", to: "doc")
            // Still open here: keeps its row, but no longer its id.
            #expect(outcome.displaced?.ino == old.ino)
            let second = try commit(a, objects)
            #expect(try a.find("doc").ino == new.ino)
            #expect(try a.find("doc").id == old.id)
            #expect(try a.get(old.ino).id != old.id)
            #expect(try a.read { try $0.isDirty() } == false)
            // Here it is open as well.
            let effects = try pull(second, into: b, objects, pinned: [old.ino])
            #expect(try b.find("doc").ino == new.ino)
            #expect(effects.orphaned == [old.ino])
            #expect(try b.get(old.ino).linkCount == 0)
            #expect(
                effects.entries == [
                    .init(parent: .root, name: try name("doc"), before: old.ino, after: new.ino)
                ])
            try expectSame(a, b)
            // And on: nothing that was done is done again.
            #expect(try commit(a, objects) == second)
            #expect(try commit(b, objects) == second)
        }
    }

    /// An open for writing, as the mount notes it.
    private func beginWriting(_ inode: InodeRow, in catalog: Catalog) throws {
        try catalog.perform {
            try $0.setStaging(
                Staging(ino: inode.ino, name: "\(inode.ino).1", base: inode.contentStamp))
        }
    }

    @Test func whatIsBeingWrittenOutlivesItsRemovalElsewhere() throws {
        try withTwo { a, b, objects in
            let removed = try a.make("removed")
            let replaced = try a.make("replaced")
            _ = try pull(commit(a, objects), into: b, objects)
            for inode in [removed, replaced] { try beginWriting(inode, in: b) }
            let text = try name("removed")
            _ = try a.perform { try $0.unlink(.root, text, now: time(2)) }
            try a.make("tmp")
            try a.move("tmp", to: "replaced")
            // Nobody says that they are open: after a crash nobody could.
            let effects = try pull(commit(a, objects), into: b, objects)
            #expect(effects.orphaned == [removed.ino, replaced.ino])
            #expect(effects.removed.isEmpty)
            for (inode, lost) in [(removed, "removed"), (replaced, "replaced")] {
                #expect(try b.get(inode.ino).linkCount == 0)
                #expect(try b.read { try $0.staging(of: inode.ino) } != nil)
                let name = try b.read { try $0.lostName(of: inode.ino) }
                #expect(name?.name.description == lost)
                #expect(name?.parent == .root)
                #expect(try b.perform { try $0.reap(inode.ino) } == false)
                // Written again after that, it is still to come back.
                try beginWriting(inode, in: b)
                #expect(try b.read { try $0.lostName(of: inode.ino) } == name)
            }
            #expect(try b.read { try $0.orphans(limit: 5) }.isEmpty)
            // With a name it is a file like any other.
            _ = try b.perform { try $0.link(removed.ino, .root, text, now: time(3)) }
            _ = try b.perform { try $0.unlink(.root, text, now: time(4)) }
            #expect(try b.read { try $0.lostName(of: removed.ino) } == nil)
            #expect(try b.read { try $0.orphans(limit: 5) } == [removed.ino])
            #expect(try b.perform { try $0.reap(removed.ino) })
        }
    }

    @Test func whatIsBeingWrittenIntoARemovedFileStaysThereWhenAnEditElsewhereKeepsIt() throws {
        try withTwo { a, b, objects in
            let file = try a.make("f")
            _ = try pull(commit(a, objects), into: b, objects)
            try beginWriting(file, in: b)
            let f = try name("f")
            _ = try b.perform { try $0.unlink(.root, f, now: time(2)) }
            _ = try a.perform {
                try $0.setContent(file.ino, .inline([1]), modified: time(2), now: time(2))
            }
            let theirs = try commit(a, objects)
            #expect(throws: ApplyConflict.self) { try pull(theirs, into: b, objects) }
            _ = try commit(b, objects)
            // As the merge of both has it: an edit outlives a removal.
            let effects = try pull(theirs, into: b, objects, pinned: [file.ino])
            let new = try b.find("f")
            #expect(new.id == file.id)
            #expect(new.ino != file.ino)
            #expect(try b.read { try $0.staging(of: new.ino) } == nil)
            #expect(try b.read { try $0.content(of: new.ino) } == .inline([1]))
            #expect(
                effects.entries == [.init(parent: .root, name: f, before: nil, after: new.ino)])
            let old = try b.get(file.ino)
            #expect(old.linkCount == 0)
            #expect(old.id != file.id)
            #expect(try b.read { try $0.staging(of: file.ino) } != nil)
            // The number it got is told, and the removed one leaves nothing.
            try b.perform { try $0.clearStaging(file.ino) }
            try reapAll(b)
            _ = try pull(commit(b, objects), into: a, objects)
            try expectSame(a, b)
        }
    }

    @Test func aSaveDuringTheCommitStaysDirty() throws {
        try withTwo { a, b, objects in
            let old = try a.make("doc")
            let first = try commit(a, objects)
            _ = try pull(first, into: b, objects)
            try a.make("tmp")
            try a.move("tmp", to: "doc")
            try a.perform { _ = try $0.reap(old.ino) }
            try a.flush()
            let (outcome, version) = try a.snapshot { snapshot in
                let dirty = try snapshot.dirtyState()
                var sink = objects
                let outcome = try commitTree(
                    onto: first, dirty: dirty.dirty, live: snapshot, settings: settings,
                    nodes: [:], source: objects, sink: &sink)
                return (outcome, dirty.version)
            }
            #expect(outcome.adoptions.count == 1)
            // Meanwhile the file goes, and another takes its name.
            let doc = try name("doc")
            try a.perform {
                let gone = try $0.unlink(.root, doc, now: time(8))
                try $0.reap(gone.ino)
            }
            try a.make("doc")
            try a.make("other")
            try a.perform { try $0.committed(outcome, as: outcome.root, through: version) }
            #expect(try a.read { try $0.isDirty() })
            _ = try pull(outcome.root, into: b, objects)
            #expect(try b.names() == ["doc"])
            _ = try pull(commit(a, objects), into: b, objects)
            #expect(try b.names() == ["doc", "other"])
            try expectSame(a, b)
        }
    }

    @Test func whatIsDirtyHereIsMergedOrRefused() throws {
        try withTwo { a, b, objects in
            let file = try a.make("f")
            let d = try a.make("d", .directory)
            _ = try pull(commit(a, objects), into: b, objects)
            func chmod(_ catalog: Catalog, _ mode: UInt16) throws {
                _ = try catalog.perform {
                    try $0.setAttributes(file.ino, AttributeChange(mode: mode), now: time(1))
                }
            }
            func write(_ catalog: Catalog, _ byte: UInt8) throws {
                _ = try catalog.perform {
                    try $0.setContent(file.ino, .inline([byte]), modified: time(1), now: time(1))
                }
            }
            // Group by group.
            try chmod(a, 0o600)
            _ = try b.perform {
                try $0.setAttributes(file.ino, AttributeChange(uid: 77), now: time(1))
            }
            // Directories' times alone never refuse.
            try a.make("x")
            try b.make("y")
            _ = try pull(commit(a, objects), into: b, objects)
            let merged = try b.get(file.ino)
            #expect(merged.mode == 0o600)
            #expect(merged.owner.uid == 77)
            #expect(try b.names() == ["d", "f", "x", "y"])
            _ = try pull(commit(b, objects), into: a, objects)
            try expectSame(a, b)

            // Content against content.
            try write(a, 1)
            try write(b, 2)
            let before = try dump(b)
            #expect(throws: ApplyConflict.self) { try pull(commit(a, objects), into: b, objects) }
            #expect(try dump(b).mapValues(\.record) == before.mapValues(\.record))
            #expect(try b.read { try $0.content(of: file.ino) } == .inline([2]))

            // An entry in a directory that goes.
            let text = try name("d")
            _ = try a.perform { try $0.rmdir(.root, text, now: time(1)) }
            try b.make("inside", in: d.ino)
            #expect(throws: ApplyConflict.self) { try pull(commit(a, objects), into: b, objects) }
            #expect(try b.names(in: d.ino) == ["inside"])
        }
    }

    @Test func aRepeatedApplyUsesWhatTheFirstOneLeft() throws {
        try withTwo { a, b, objects in
            let d = try a.make("d", .directory)
            try a.make("f", in: d.ino)
            let tip = try commit(a, objects)
            let whole = try difference(from: nil, to: tip, source: objects)
            // As if the process had died before the last step: everything but what is visible.
            var part = whole
            part.places = part.places.filter { $0.key.directory != .root }
            _ = try b.apply(part, commit: tip) { _ in false }
            #expect(try b.names().isEmpty)
            _ = try b.apply(whole, commit: tip) { _ in false }
            try expectSame(a, b)
        }
    }

    @Test func orphansOfAnInterruptedApplyAreReaped() throws {
        try withTwo { a, b, objects in
            let d = try a.make("d", .directory)
            let e = try a.make("e", in: d.ino, .directory)
            try a.make("f", in: e.ino)
            let tip = try commit(a, objects)
            var part = try difference(from: nil, to: tip, source: objects)
            part.places = part.places.filter { $0.key.directory != .root }
            _ = try b.apply(part, commit: tip) { _ in false }
            try reapAll(b)
            #expect(try dump(b).count == 1)
            #expect(try b.read { try $0.inode(id: d.id) } == nil)
            #expect(try b.read { try $0.inode(id: e.id) } == nil)
        }
    }

    @Test func equalInodeNumbersAreToldApart() throws {
        try withTwo { a, b, objects in
            _ = try pull(commit(a, objects), into: b, objects)
            // Another inode's record with a number that is taken here, older and newer.
            for milliseconds in [UInt64(5), 5_000_000_000_000] {
                let local = try b.make("local\(milliseconds)")
                let id = LineageID(rawValue: 1 << 50 | milliseconds)
                let stamp = Stamp(
                    milliseconds: milliseconds, counter: 0, node: NodeID(high: 0, low: 1))
                let group = BodyGroup(body: .file(.inline([1])), modified: time(1))
                var change = TreeDifference()
                change.records[id] = Record(
                    id: id, ino: local.ino, content: Stamped(group, stamp),
                    mode: Stamped(0o644, stamp), owner: Stamped(.root, stamp))
                change.places[Place(directory: .root, name: try name("far\(milliseconds)"))] =
                    Link(id: LinkID(rawValue: milliseconds), stamp: stamp, target: id)
                _ = try b.apply(change, commit: commit(a, objects)) { _ in false }
                let (far, near) = (
                    try b.find("far\(milliseconds)"), try b.find("local\(milliseconds)")
                )
                #expect(far.ino != near.ino)
                #expect((far.ino == local.ino) == (milliseconds == 5))
                #expect(far.id == id)
                #expect(near.id == local.id)
                #expect(try b.read { try $0.content(of: far.ino) } == .inline([1]))
            }
        }
    }

    @Test func randomChangesOnTwoNodesTakingTurnsStayTheSame() throws {
        let seed = newSeed()
        var generator = SeededGenerator(seed: seed)
        try withTwo { a, b, objects in
            _ = try pull(commit(a, objects), into: b, objects)
            for round in 0..<30 {
                let (one, other) = round % 2 == 0 ? (a, b) : (b, a)
                for _ in 0..<Int.random(in: 1..<25, using: &generator) {
                    try randomChange(one, &generator)
                }
                let tip = try commit(one, objects, adopting: Bool.random(using: &generator))
                _ = try pull(tip, into: other, objects)
                try expectSame(a, b)
                for catalog in [a, b] { try reapAll(catalog) }
                // The whole tree written anew is the tree that grew.
                let whole = try other.snapshot { snapshot in
                    var sink = objects
                    return try commitTree(
                        onto: nil, dirty: DirtySet(), live: NoTrees(snapshot: snapshot),
                        settings: settings, nodes: [:], source: objects, sink: &sink
                    ).root
                }
                #expect(whole == tip)
            }
        }
    }
}

/// The same state without what is known of the last commit.
private struct NoTrees: LiveState {
    let snapshot: Snapshot

    func record(_ id: LineageID) throws -> Record? { try snapshot.record(id) }
    func links(of id: LineageID) throws -> [(place: Place, link: Link)] {
        try snapshot.links(of: id)
    }
    func link(at place: Place) throws -> Link? { try snapshot.link(at: place) }
    func children(of directory: LineageID) throws -> [(name: FileName, link: Link)] {
        try snapshot.children(of: directory)
    }
    func tree(of directory: LineageID) throws -> ObjectID? { nil }
}
