import NIOCore
import NIOPosix
import Synchronization
import Volume

/// Saying hello: to candidates, to online peers, and back.
extension Mesh {
    /// What came back when we said hello.
    enum Greeting {
        /// Nil: what it says of itself is unchanged.
        case welcome(Hello?)
        case refused(HelloError, NodeID)
    }

    private enum Header {
        /// Names the sender's hello, sent along or known already.
        static let hello = "delugefs-hello"
        /// Names the hello of the other side that the sender has.
        static let known = "delugefs-known"
        /// What the answering side's clock says, in milliseconds since 1970.
        static let clock = "delugefs-clock"
    }

    private static let unknownHello = 412
    private static let refusedHello = 409

    // MARK: - To others

    /// Says hello to an endpoint; an unchanged hello is only named, not sent, and so is the answer.
    func greet(_ endpoint: Endpoint, expecting: NodeID?) async throws(PeerError) -> Greeting {
        let (ours, bytes) = currentHello()
        let known = expecting.flatMap { peer($0)?.hello }
        var headers: [(name: String, value: String)] = [(Header.hello, ours.tag)]
        if let known { headers.append((Header.known, known.tag)) }
        // A peer that we know has most likely seen this; if not it says so.
        let isNamedOnly = expecting.map { told($0, ours) } ?? false
        var reply = try await sayHello(endpoint, expecting, headers, isNamedOnly ? [] : bytes)
        if reply.status == Self.unknownHello {
            reply = try await sayHello(endpoint, expecting, headers, bytes)
        }
        if let expecting, (200..<300).contains(reply.status) {
            remember(expecting, knows: ours, reply.header(Header.clock).flatMap { Int64($0) })
        }
        if reply.status == 204 { return .welcome(nil) }
        // Whoever refuses us says who it is, so that both sides can tell why.
        let isRefusal = reply.status == Self.refusedHello
        let body = isRefusal ? reply.body : try reply.successful().body
        do throws(HelloError) {
            let hello = try accept(body, from: reply.node)
            if isRefusal { throw .invalid("it refuses ours") }
            return .welcome(hello)
        } catch {
            return .refused(error, reply.node)
        }
    }

    private func sayHello(
        _ endpoint: Endpoint, _ expecting: NodeID?, _ headers: [(name: String, value: String)],
        _ body: [UInt8]
    ) async throws(PeerError) -> PeerReply {
        try await helloClient.request(
            endpoint, expecting: expecting, path: Self.helloPath, headers: headers, body: body,
            timeout: configuration.helloTimeout, replyBytesMax: Hello.bytesMax)
    }

    /// Checks what a peer says of itself.
    private func accept(_ bytes: [UInt8], from node: NodeID) throws(HelloError) -> Hello {
        let hello = try Hello(parsing: bytes)
        guard hello.node == node else { throw .otherNode }
        guard hello.volume == configuration.volume else { throw .otherVolume(hello.volume) }
        return hello
    }

    // MARK: - From others

    func answerHello(_ request: PeerRequest) -> PeerResponse {
        guard let node = request.node, request.method == "POST" else {
            return .refusal(405, "hello is said by members with POST")
        }
        let host = request.remoteHost ?? "unknown"
        guard let tag = request.header(Header.hello), tag.utf8.count <= 64 else {
            return .refusal(400, "a hello needs a name")
        }
        if request.body.isEmpty {
            // Only of a peer that we reach: from others the whole hello tells us where to dial.
            guard let peer = peer(node), peer.isOnline, peer.hello.tag == tag else {
                return .refusal(Self.unknownHello, "this hello is not known here")
            }
        } else {
            do throws(HelloError) {
                try heard(try accept(request.body, from: node), host: host)
            } catch {
                note(error, node: node, where: host)
                return PeerResponse(
                    status: Self.refusedHello, body: .bytes(currentHello().bytes))
            }
        }
        let (ours, bytes) = currentHello()
        let headers = [
            (name: Header.hello, value: ours.tag),
            (name: Header.clock, value: "\(Self.wallMilliseconds())"),
        ]
        if request.header(Header.known) == ours.tag {
            return PeerResponse(status: 204, headers: headers)
        }
        return PeerResponse(headers: headers, body: .bytes(bytes))
    }

    private func heard(_ hello: Hello, host: String) throws(HelloError) {
        let now = ContinuousClock.now
        guard hello.node != node else {
            if hello.instance != instance { noteCopy(of: node, "this node", "at \(host)") }
            return
        }
        let isNew = state.withLock { state in
            guard !state.isStopped else { return false }
            if let events = state.table.heard(hello) {
                state.events += events
                let endpoint = state.table.entries[hello.node]?.peer.endpoint
                return listen(to: hello, by: endpoint, &state)
            }
            // Unknown, offline, or an instance that we have not met: see for ourselves.
            guard let endpoint = Endpoint(host: host, port: hello.apiPort) else { return false }
            state.table.add(endpoint, source: .heard, now: now, hurry: true)
            if state.table.entries[hello.node]?.peer.isOnline == true {
                state.table.doubt(endpoint, now: now)
            }
            return true
        }
        deliver()
        if isNew { dialWakeup.signal() }
    }

    /// Takes over the addresses that a peer reaches others by; true when one is new.
    private func listen(to hello: Hello, by endpoint: Endpoint?, _ state: inout State) -> Bool {
        let now = ContinuousClock.now
        var isNew = false
        for neighbour in hello.neighbours where neighbour.node != node {
            if state.table.entries[neighbour.node]?.peer.isOnline == true { continue }
            // A loopback address means our machine only to a peer on our machine.
            if Self.isLoopback(neighbour.endpoint), endpoint.map(Self.isLoopback) != true {
                continue
            }
            if state.table.add(neighbour.endpoint, source: .heard, now: now) { isNew = true }
        }
        return isNew
    }

    private static func isLoopback(_ endpoint: Endpoint) -> Bool {
        endpoint.host.hasPrefix("127.") || endpoint.host == "::1" || endpoint.host == "localhost"
    }

    // MARK: - Candidates

    /// The dialler: gives every candidate its turn, a bounded number at a time.
    func dialForEver() async {
        let loop = threads.group.next()
        await withDiscardingTaskGroup { group in
            while !Task.isCancelled {
                let now = ContinuousClock.now
                let (endpoints, next) = state.withLock { state in
                    let due = state.table.takeDue(
                        now: now, limit: configuration.dialsMax - state.dials)
                    state.dials += due.endpoints.count
                    return due
                }
                for endpoint in endpoints {
                    group.addTask {
                        await self.contact(endpoint)
                        self.state.withLock { $0.dials -= 1 }
                        self.dialWakeup.signal()
                    }
                }
                let pause = next.map { max($0 - now, .milliseconds(1)) } ?? configuration.backoffMax
                await dialWakeup.wait(atMost: min(pause, configuration.backoffMax), on: loop)
            }
        }
    }

    private func contact(_ endpoint: Endpoint) async {
        do throws(PeerError) {
            switch try await greet(endpoint, expecting: nil) {
            case .welcome(let hello?): await welcome(hello, at: endpoint)
            case .welcome(nil): state.withLock { $0.table.failed(endpoint, now: .now) }
            case .refused(let error, let node):
                note(error, node: node, where: endpoint.description)
                state.withLock { $0.table.failed(endpoint, now: .now) }
            }
        } catch {
            await noteFailure(error, at: endpoint)
            state.withLock { $0.table.failed(endpoint, now: .now) }
        }
    }

    private func welcome(_ hello: Hello, at endpoint: Endpoint) async {
        guard hello.node != node else {
            if hello.instance == instance {
                return state.withLock { $0.table.isOurselves(endpoint) }
            }
            noteCopy(of: node, "this node", "at \(endpoint)")
            return state.withLock { $0.table.failed(endpoint, now: .now) }
        }
        switch admit(hello, at: endpoint, replacing: false) {
        case .admitted: break
        case .full:
            note(
                .tooManyPeers, endpoint.description,
                "more than \(configuration.peersMax) peers: \(endpoint) is left out"
            )
            state.withLock { $0.table.failed(endpoint, now: .now) }
        case .rival(let other):
            // Restarted elsewhere, unless the other one is still there.
            let answer = try? await greet(other, expecting: hello.node)
            let rival: Hello? =
                switch answer {
                case .welcome(let changed): changed ?? peer(hello.node)?.hello
                default: nil
                }
            if let rival, rival.instance != hello.instance {
                noteCopy(of: hello.node, "node \(hello.name)", "at \(other) and at \(endpoint)")
                state.withLock { $0.table.failed(endpoint, now: .now) }
            } else {
                _ = admit(hello, at: endpoint, replacing: true)
            }
        }
        deliver()
    }

    private func admit(
        _ hello: Hello, at endpoint: Endpoint, replacing: Bool
    ) -> PeerTable.Admission {
        state.withLock { state in
            guard !state.isStopped else { return .full }
            let admission = state.table.admit(
                hello, at: endpoint, replacing: replacing, now: .now,
                wall: Self.wallMilliseconds())
            guard case .admitted(let events) = admission else { return admission }
            state.events += events
            state.problems.clear(subject: endpoint.description)
            // The dialler looks again when this contact ends.
            _ = listen(to: hello, by: endpoint, &state)
            if state.heartbeats[hello.node] == nil {
                let wakeup = Wakeup()
                let node = hello.node
                state.heartbeats[node] = Heartbeat(
                    task: Task { await self.beat(node, wakeup) }, wakeup: wakeup)
            }
            return admission
        }
    }

    // MARK: - Heartbeats

    /// Greets one online peer until it is lost.
    private func beat(_ node: NodeID, _ wakeup: Wakeup) async {
        let loop = threads.group.next()
        var wait = configuration.heartbeat
        while !Task.isCancelled {
            if wait > .zero { await wakeup.wait(atMost: wait, on: loop) }
            guard !Task.isCancelled, let endpoint = peer(node)?.endpoint else { break }
            wait = configuration.heartbeat
            let outcome = await pulse(node, endpoint)
            if outcome == .retry { wait = .zero }
            if outcome == .lost, lose(node, endpoint) { break }
        }
    }

    private enum Pulse { case answered, retry, lost }

    private func pulse(_ node: NodeID, _ endpoint: Endpoint) async -> Pulse {
        do throws(PeerError) {
            switch try await greet(endpoint, expecting: node) {
            case .welcome(let hello):
                let isNew = state.withLock { state in
                    state.events += state.table.answered(
                        node, hello: hello, now: .now, wall: Self.wallMilliseconds())
                    return hello.map { listen(to: $0, by: endpoint, &state) } ?? false
                }
                deliver()
                if isNew { dialWakeup.signal() }
                return .answered
            case .refused(let error, let node):
                note(error, node: node, where: endpoint.description)
                return .lost
            }
        } catch {
            switch error {
            case .timeout:
                // Nothing refuses: the network may be slow, the machine busy or unplugged.
                helloClient.disconnect(endpoint)
                let silence = state.withLock {
                    $0.table.entries[node].map { .now - $0.lastSuccess }
                }
                return silence.map { $0 < configuration.offlineAfter } ?? false ? .retry : .lost
            case .status(503, _), .busy: return .answered
            default: return .lost
            }
        }
    }

    /// Takes a peer off line, unless it was reached elsewhere meanwhile; true when its heart stops.
    private func lose(_ node: NodeID, _ endpoint: Endpoint) -> Bool {
        let isLost = state.withLock { state in
            guard !state.isStopped, state.table.entries[node]?.peer.endpoint == endpoint else {
                return state.isStopped
            }
            state.events += state.table.lost(node, now: .now)
            state.heartbeats[node] = nil
            state.told[node] = nil
            return true
        }
        guard isLost else { return false }
        // Whoever waits for an answer from there hears now that none will come.
        client.cut(endpoint)
        helloClient.cut(endpoint)
        deliver()
        dialWakeup.signal()
        return true
    }

    // MARK: - What the other side has of ours

    /// Whether our hello in this state was answered by the node's present instance.
    private func told(_ node: NodeID, _ ours: Hello) -> Bool {
        state.withLock { $0.told[node] == ours.tag }
    }

    private func remember(_ node: NodeID, knows ours: Hello, _ clock: Int64?) {
        let wall = Self.wallMilliseconds()
        state.withLock { state in
            guard state.table.entries[node] != nil else { return }
            state.told[node] = ours.tag
            state.clocks[node] = clock.map { $0.subtractingReportingOverflow(wall).partialValue }
        }
    }

    // MARK: - Problems

    private func note(_ code: MeshProblem.Code, _ subject: String, _ text: String) {
        let wall = Self.wallMilliseconds()
        state.withLock { $0.problems.record(code, subject, text, now: .now, wall: wall) }
    }

    private func noteCopy(of node: NodeID, _ name: String, _ places: String) {
        note(
            .copiedRoot, node.description,
            "\(name) runs twice, also \(places): a root was copied; stop one, and start it with an "
                + "empty root")
    }

    private func note(_ error: HelloError, node: NodeID, where place: String) {
        let text = Self.sentence(error, configuration.volume)
        switch error {
        case .otherFormat: note(.upgrade, place, "the node at \(place): \(text)")
        case .otherVolume: note(.wrongVolume, place, "the node at \(place): \(text)")
        case .invalid, .otherNode: note(.invalidPeer, place, "the node at \(place): \(text)")
        }
    }

    private static func sentence(_ error: HelloError, _ volume: String) -> String {
        switch error {
        case .invalid(let reason): "its hello is invalid (\(reason))"
        case .otherNode: "its hello and its certificate name different nodes"
        case .otherVolume(let other):
            "it serves volume \(PeerError.printable(other.utf8)), not \(volume), with the same key"
        case .otherFormat(let format, let rules, let version):
            "version \(version) speaks format \(format), rules \(rules); this is format "
                + "\(Hello.formatSpoken), rules \(Hello.rulesSpoken): upgrade the older one"
        }
    }

    /// Tells of an address that a person or mDNS gave and that belongs to another authority.
    private func noteFailure(_ error: PeerError, at endpoint: Endpoint) async {
        guard error == .wrongAuthority,
            let source = state.withLock({ $0.table.source(of: endpoint) }), source > .heard
        else { return }
        let theirs = await helloClient.presentedAuthority(endpoint) ?? "unknown"
        note(
            .wrongAuthority, endpoint.description,
            "The key given is for another volume named \(configuration.volume) (ours "
                + "\(authority.ca16), peers serve \(theirs) at \(endpoint)).")
    }
}
