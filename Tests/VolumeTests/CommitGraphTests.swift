import Simulation
import Testing

@testable import Volume

/// A graph of numbered commits.
struct NumberedGraph: CommitGraph {
    let parents: [[Int]]
    private let numbers: [ObjectID: Int]

    init(parents: [[Int]]) {
        self.parents = parents
        numbers = Dictionary(uniqueKeysWithValues: parents.indices.map { (Self.id($0), $0) })
    }

    static func id(_ number: Int) -> ObjectID {
        let bytes = Array(PureSHA256.digest(mostSignificantFirst(UInt64(number))).prefix(20))
        guard let id = ObjectID(bytes: bytes) else { preconditionFailure("20 bytes") }
        return id
    }

    func number(_ id: ObjectID) throws -> Int {
        guard let number = numbers[id] else { throw InvalidTree("an unknown commit") }
        return number
    }

    func parents(of commit: ObjectID) throws -> [ObjectID] {
        parents[try number(commit)].map(Self.id)
    }

    func tree(of commit: ObjectID) throws -> ObjectID { commit }

    /// Numbers rise along edges.
    func generation(of commit: ObjectID) throws -> Int { try number(commit) / 3 * 3 + 2 }

    func ancestors(_ number: Int) -> Set<Int> {
        parents[number].reduce(into: [number]) { $0.formUnion(ancestors($1)) }
    }
}

@Suite struct CommitGraphTests {
    @Test("Ancestors and maximal heads are those of the definition")
    func definition() throws {
        for seed in 0..<40 as Range<UInt64> {
            var generator = SeededGenerator(seed: seed)
            // In ranks of three, edges to earlier ranks only, so that generations rise.
            let parents = (0..<21).map { number -> [Int] in
                let earlier = Array(0..<(number / 3 * 3))
                return Array(earlier.suffix(9).shuffled(using: &generator).prefix(2))
            }
            let graph = NumberedGraph(parents: parents)
            let ancestors = parents.indices.map(graph.ancestors)
            func maximal(_ set: Set<Int>) -> [ObjectID] {
                set.filter { one in !set.contains { $0 != one && ancestors[$0].contains(one) } }
                    .map(NumberedGraph.id).sorted()
            }
            for _ in 0..<20 {
                let picked = (0..<4).map { _ in Int.random(in: 0..<21, using: &generator) }
                let ids = picked.map(NumberedGraph.id)
                let left = ancestors[picked[0]].union(ancestors[picked[1]])
                let right = ancestors[picked[2]].union(ancestors[picked[3]])
                let common = try graph.maximalCommonAncestors(ids[..<2], ids[2...])
                #expect(common == maximal(left.intersection(right)), "seed \(seed)")
                #expect(try graph.reduceToMaximal(ids) == maximal(Set(picked)), "seed \(seed)")
                let isBelow = ancestors[picked[1]].contains(picked[0])
                #expect(try graph.isAncestor(ids[0], of: ids[1]) == isBelow, "seed \(seed)")
            }
        }
    }
}
