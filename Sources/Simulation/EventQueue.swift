/// What will happen, by time and, at one time, by the order in which it was put in.
struct EventQueue<Event> {
    private struct Entry {
        let time: Int
        let number: Int
        let event: Event

        static func < (a: Self, b: Self) -> Bool { (a.time, a.number) < (b.time, b.number) }
    }

    /// A binary heap, earliest first.
    private var entries: [Entry] = []
    private var count = 0

    mutating func add(_ event: Event, at time: Int) {
        entries.append(Entry(time: time, number: count, event: event))
        count += 1
        var at = entries.count - 1
        while at > 0, entries[at] < entries[(at - 1) / 2] {
            entries.swapAt(at, (at - 1) / 2)
            at = (at - 1) / 2
        }
    }

    mutating func next() -> (time: Int, event: Event)? {
        guard let first = entries.first, let last = entries.popLast() else { return nil }
        if entries.isEmpty { return (first.time, first.event) }
        entries[0] = last
        var at = 0
        while true {
            var least = at
            for child in [2 * at + 1, 2 * at + 2]
            where child < entries.count && entries[child] < entries[least] { least = child }
            if least == at { return (first.time, first.event) }
            entries.swapAt(at, least)
            at = least
        }
    }
}
