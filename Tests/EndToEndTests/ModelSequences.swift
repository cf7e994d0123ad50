/// Sequences that once came out otherwise than on ext4, as the model's test printed them.
enum ModelSequences {
    static let all: [(name: String, operations: [ModelOperation])] = []
}
