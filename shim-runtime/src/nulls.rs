//! JSON as Go reads it: a null stands for the zero value of whatever is expected in its place. containerd and its
//! clients are written in Go, and what they send was read and written by Go's rules before.
//!
//! A deserializer around another one does that for every value at every depth, so no field of a struct has to ask
//! for it.

use std::fmt;
use std::iter::empty;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Parses a JSON text. Each null is the zero value, or `None` for an `Option`.
///
/// # Errors
/// What is not JSON, and a value of another kind than is expected; a list is not taken for a struct.
pub(crate) fn from_slice<'de, T: Deserialize<'de>>(text: &'de [u8]) -> serde_json::Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = T::deserialize(Lenient(&mut json))?;
    json.end().map(|()| value)
}

/// Around a deserializer, and around everything that it hands on to what is inside.
struct Lenient<T>(T);

/// One kind of value that has a zero.
trait Kind {
    /// Gives the zero value to a visitor.
    fn zero<'de, V: Visitor<'de>, E: Error>(visitor: V) -> Result<V::Value, E>;

    /// Reads a value that is not null.
    fn read<'de, D: Deserializer<'de>, V: Visitor<'de>>(from: D, visitor: V) -> Result<V::Value, D::Error>;
}

/// Defines the kinds, and [`Lenient`] as a deserializer that takes a null for the zero of each. A line is: the
/// kind's name, the deserializer's method for it, and what the visitor is given for a null.
macro_rules! kinds {
    ($($kind:ident, $method:ident, $visitor:ident => $zero:expr;)+) => {
        $(
            struct $kind;

            impl Kind for $kind {
                fn zero<'de, V: Visitor<'de>, E: Error>($visitor: V) -> Result<V::Value, E> {
                    $zero
                }

                fn read<'de, D: Deserializer<'de>, V: Visitor<'de>>(
                    from: D,
                    visitor: V,
                ) -> Result<V::Value, D::Error> {
                    from.$method(Lenient(visitor))
                }
            }
        )+

        impl<'de, D: Deserializer<'de>> Deserializer<'de> for Lenient<D> {
            type Error = D::Error;

            $(
                fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
                    self.0.deserialize_option(NullOr::<V, $kind>(visitor, PhantomData))
                }
            )+

            /// A struct is read as a map: code that serde derives would take a list for its fields in their order.
            fn deserialize_struct<V: Visitor<'de>>(
                self,
                _: &'static str,
                _: &'static [&'static str],
                visitor: V,
            ) -> Result<V::Value, D::Error> {
                self.deserialize_map(visitor)
            }

            fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
                self.0.deserialize_option(Lenient(visitor))
            }

            fn deserialize_newtype_struct<V: Visitor<'de>>(
                self,
                name: &'static str,
                visitor: V,
            ) -> Result<V::Value, D::Error> {
                self.0.deserialize_newtype_struct(name, Lenient(visitor))
            }

            fn deserialize_tuple_struct<V: Visitor<'de>>(
                self,
                name: &'static str,
                length: usize,
                visitor: V,
            ) -> Result<V::Value, D::Error> {
                self.0.deserialize_tuple_struct(name, length, Lenient(visitor))
            }

            fn deserialize_tuple<V: Visitor<'de>>(
                self,
                length: usize,
                visitor: V,
            ) -> Result<V::Value, D::Error> {
                self.0.deserialize_tuple(length, Lenient(visitor))
            }

            fn deserialize_unit_struct<V: Visitor<'de>>(
                self,
                name: &'static str,
                visitor: V,
            ) -> Result<V::Value, D::Error> {
                self.0.deserialize_unit_struct(name, visitor)
            }

            fn deserialize_enum<V: Visitor<'de>>(
                self,
                name: &'static str,
                variants: &'static [&'static str],
                visitor: V,
            ) -> Result<V::Value, D::Error> {
                self.0.deserialize_enum(name, variants, visitor)
            }

            fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
                self.0.deserialize_unit(visitor)
            }

            fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
                self.0.deserialize_any(visitor)
            }

            fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
                self.0.deserialize_identifier(visitor)
            }

            fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
                self.0.deserialize_ignored_any(visitor)
            }
        }
    };
}

kinds! {
    Bool, deserialize_bool, visitor => visitor.visit_bool(false);
    I8, deserialize_i8, visitor => visitor.visit_u64(0);
    I16, deserialize_i16, visitor => visitor.visit_u64(0);
    I32, deserialize_i32, visitor => visitor.visit_u64(0);
    I64, deserialize_i64, visitor => visitor.visit_u64(0);
    U8, deserialize_u8, visitor => visitor.visit_u64(0);
    U16, deserialize_u16, visitor => visitor.visit_u64(0);
    U32, deserialize_u32, visitor => visitor.visit_u64(0);
    U64, deserialize_u64, visitor => visitor.visit_u64(0);
    F32, deserialize_f32, visitor => visitor.visit_u64(0);
    F64, deserialize_f64, visitor => visitor.visit_u64(0);
    Char, deserialize_char, visitor => visitor.visit_char('\0');
    Str, deserialize_str, visitor => visitor.visit_str("");
    Text, deserialize_string, visitor => visitor.visit_str("");
    Bytes, deserialize_bytes, visitor => visitor.visit_bytes(&[]);
    Buffer, deserialize_byte_buf, visitor => visitor.visit_bytes(&[]);
    List, deserialize_seq, visitor => visitor.visit_seq(SeqDeserializer::new(empty::<()>()));
    Map, deserialize_map, visitor => visitor.visit_map(MapDeserializer::new(empty::<((), ())>()));
}

/// Asks for a value as for an optional one, and has a missing one be the kind's zero.
struct NullOr<V, K>(V, PhantomData<K>);

impl<'de, V: Visitor<'de>, K: Kind> Visitor<'de> for NullOr<V, K> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        K::zero(self.0)
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        K::zero(self.0)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error> {
        K::read(from, self.0)
    }
}

/// Defines the methods of a visitor that hand a plain value on.
macro_rules! hand_on {
    ($($method:ident: $value:ty;)+) => {$(
        fn $method<E: Error>(self, value: $value) -> Result<V::Value, E> {
            self.0.$method(value)
        }
    )+};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Lenient<V> {
    type Value = V::Value;

    hand_on! {
        visit_bool: bool;
        visit_i64: i64;
        visit_u64: u64;
        visit_f64: f64;
        visit_char: char;
        visit_str: &str;
        visit_borrowed_str: &'de str;
        visit_string: String;
        visit_bytes: &[u8];
        visit_borrowed_bytes: &'de [u8];
        visit_byte_buf: Vec<u8>;
    }

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Lenient(from))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Lenient(from))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Lenient(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Lenient(entries))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Lenient<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Lenient(from))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Lenient<A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.0.next_element_seed(Lenient(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Lenient<A> {
    type Error = A::Error;

    /// No key is null.
    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.0.next_value_seed(Lenient(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use serde::de::value::{Error as PlainError, StrDeserializer};
    use serde::forward_to_deserialize_any;

    use super::*;

    #[test]
    fn a_null_is_the_zero_of_what_is_expected_in_its_place() {
        #[derive(Debug, Default, PartialEq, Deserialize)]
        #[serde(default)]
        struct All {
            on: bool,
            count: i32,
            share: f64,
            text: String,
            list: Vec<u64>,
            labels: HashMap<String, String>,
            inside: Option<Box<All>>,
        }
        let nulls =
            br#"{"on":null,"count":null,"share":null,"text":null,"list":null,"labels":null,"inside":null}"#;
        assert_eq!(from_slice::<All>(nulls).unwrap(), All::default());
        let deeper = br#"{"list":[1,null,3],"labels":{"a":null,"b":"c"},"inside":{"text":null,"count":4}}"#;
        let all = from_slice::<All>(deeper).unwrap();
        assert_eq!(all.list, [1, 0, 3]);
        assert_eq!((all.labels["a"].as_str(), all.labels["b"].as_str()), ("", "c"));
        assert_eq!(all.inside.unwrap().count, 4);
        assert_eq!(from_slice::<All>(b"null").unwrap(), All::default());
        for broken in ["", "[]", r#"{"on":1}"#, r#"{"count":"1"}"#, r#"{"inside":[]}"#, "{} x"] {
            assert!(from_slice::<All>(broken.as_bytes()).is_err(), "{broken}");
        }
    }

    /// Places in a JSON text, each as the text that has a null there.
    pub(crate) fn texts_with_a_null<T: for<'de> Deserialize<'de>>() -> Vec<String> {
        let found = RefCell::default();
        let here = Place { found: &found, around: [String::new(), String::new()] };
        T::deserialize(here).unwrap();
        found.into_inner()
    }

    /// Deserializes anything whatsoever, and notes each place that it is asked for.
    struct Place<'a> {
        found: &'a RefCell<Vec<String>>,
        around: [String; 2],
    }

    impl<'a> Place<'a> {
        fn inside(&self, before: &str, after: &str) -> Place<'a> {
            let [first, last] = &self.around;
            Place { found: self.found, around: [format!("{first}{before}"), format!("{after}{last}")] }
        }

        fn note(&self) {
            self.found.borrow_mut().push(self.around.join("null"));
        }
    }

    impl<'de> Deserializer<'de> for Place<'_> {
        type Error = PlainError;

        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PlainError> {
            self.note();
            visitor.visit_u64(0)
        }

        fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PlainError> {
            self.note();
            visitor.visit_bool(false)
        }

        fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PlainError> {
            self.note();
            visitor.visit_str("")
        }

        fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PlainError> {
            visitor.visit_some(self)
        }

        fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PlainError> {
            self.note();
            visitor.visit_seq(Items(Some(self.inside("[", "]"))))
        }

        fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PlainError> {
            self.note();
            visitor.visit_map(Fields { place: self, names: &["any"], next: "" })
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            names: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, PlainError> {
            self.note();
            visitor.visit_map(Fields { place: self, names, next: "" })
        }

        forward_to_deserialize_any! {
            i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str bytes byte_buf unit unit_struct newtype_struct tuple
            tuple_struct enum identifier ignored_any
        }
    }

    struct Items<'a>(Option<Place<'a>>);

    impl<'de> SeqAccess<'de> for Items<'_> {
        type Error = PlainError;

        fn next_element_seed<T: DeserializeSeed<'de>>(
            &mut self,
            seed: T,
        ) -> Result<Option<T::Value>, PlainError> {
            self.0.take().map(|place| seed.deserialize(place)).transpose()
        }
    }

    struct Fields<'a> {
        place: Place<'a>,
        names: &'static [&'static str],
        next: &'static str,
    }

    impl<'de> MapAccess<'de> for Fields<'_> {
        type Error = PlainError;

        fn next_key_seed<T: DeserializeSeed<'de>>(
            &mut self,
            seed: T,
        ) -> Result<Option<T::Value>, PlainError> {
            let Some((name, rest)) = self.names.split_first() else { return Ok(None) };
            (self.next, self.names) = (name, rest);
            seed.deserialize(StrDeserializer::new(name)).map(Some)
        }

        fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, PlainError> {
            seed.deserialize(self.place.inside(&format!("{{\"{}\":", self.next), "}"))
        }
    }
}
