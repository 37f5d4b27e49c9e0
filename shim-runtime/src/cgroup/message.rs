//! Messages of numbers, written field by field as protobuf has them. Generated types bring code for each field,
//! which for the metrics of both versions is more than all else about cgroups.

/// A message. As always in protobuf, a number that is 0 is left out.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

/// Numbers by their fields.
pub(super) type Values = [u64; 38];
pub(super) const NONE: Values = [0; 38];
/// Names in a file, and the fields that their numbers are added to.
pub(super) type Names = &'static [(&'static str, u8)];

const VARINT: u64 = 0;
const DOUBLE: u64 = 1;
const BYTES: u64 = 2;

impl Message {
    /// A message of numbers by their fields, of which there is no 0.
    pub(super) fn of(values: &[u64]) -> Self {
        let mut message = Self::default();
        (0..).zip(values).for_each(|(field, value)| message.number(field, *value));
        message
    }

    pub(super) fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.varint(field << 3 | VARINT);
            self.varint(value);
        }
    }

    /// A list of numbers, as one.
    pub(super) fn numbers(&mut self, field: u64, values: impl Iterator<Item = u64>) {
        let mut list = Self::default();
        values.for_each(|value| list.varint(value));
        self.bytes(field, &list.0);
    }

    pub(super) fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | DOUBLE);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// A message in this one, or the next of a list of them.
    pub(super) fn message(&mut self, field: u64, message: Option<Self>) {
        if let Some(message) = message {
            self.bytes(field, &message.0);
        }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    #[inline(never)]
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}
