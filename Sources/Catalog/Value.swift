internal import Volume

/// What stands in one column: the five storage classes less TEXT and REAL, which no column has.
enum Value: Hashable {
    case null
    case integer(Int64)
    case blob([UInt8])
}

/// Something one SQL parameter can be.
protocol Bindable {
    var value: Value { get }
}

extension Int64: Bindable { var value: Value { .integer(self) } }
extension Int: Bindable { var value: Value { .integer(Int64(self)) } }
extension UInt32: Bindable { var value: Value { .integer(Int64(self)) } }
extension UInt16: Bindable { var value: Value { .integer(Int64(self)) } }
/// All 64 bits are kept; the order is that of `Int64`.
extension UInt64: Bindable { var value: Value { .integer(Int64(bitPattern: self)) } }
extension [UInt8]: Bindable { var value: Value { .blob(self) } }
extension InodeNumber: Bindable { var value: Value { rawValue.value } }
extension LineageID: Bindable { var value: Value { rawValue.value } }
extension LinkID: Bindable { var value: Value { rawValue.value } }
extension FileName: Bindable { var value: Value { .blob(bytes) } }
extension ObjectID: Bindable { var value: Value { .blob(bytes) } }
extension ContentRoot: Bindable { var value: Value { .blob(bytes) } }
extension NodeID: Bindable { var value: Value { .blob(bytes) } }
extension Optional: Bindable where Wrapped: Bindable {
    var value: Value { self?.value ?? .null }
}
