/// The kernel's 32-bit encoding of a device number, as in `new_encode_dev`.
enum DeviceNumber {
    static func encode(major: UInt32, minor: UInt32) -> UInt32 {
        minor & 0xFF | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12
    }

    static func decode(_ device: UInt32) -> (major: UInt32, minor: UInt32) {
        (device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00)
    }
}
