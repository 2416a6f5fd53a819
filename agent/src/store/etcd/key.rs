//! A record's key as text: etcd's keys are bytes, and not all of them are UTF-8.
//!
//! Bytes that are no UTF-8 are written `\xff`, and so is a backslash, so that each key has a text of its own and can be
//! found by it again. No subnet's key has any of them.

/// The text of a key.
pub(super) fn text(key: &[u8]) -> String {
    let mut text = String::with_capacity(key.len());
    for chunk in key.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text += "\\x5c",
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| text += &format!("\\x{byte:02x}"));
    }
    text
}

/// The key of a text.
pub(super) fn bytes(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((plain, escaped)) = rest.split_once("\\x") {
        bytes.extend(plain.as_bytes());
        match escaped.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &escaped[2..];
            }
            None => {
                bytes.extend(b"\\x");
                rest = escaped;
            }
        }
    }
    bytes.extend(rest.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_a_text_of_its_own() {
        for (key, expected) in [
            (&b"10.5.7.0-24&fc00::-64"[..], "10.5.7.0-24&fc00::-64"),
            (b"a\xffb\n", "a\\xffb\n"),
            (b"a\\xffb", "a\\x5cxffb"),
            ("Köln".as_bytes(), "Köln"),
        ] {
            assert_eq!(text(key), expected);
            assert_eq!(bytes(expected), key);
        }
    }

    proptest::proptest! {
        #[test]
        fn a_key_is_found_by_its_text(key: Vec<u8>, near in "[a\\\\xf0]{0,8}") {
            proptest::prop_assert_eq!(&bytes(&text(&key)), &key);
            proptest::prop_assert_eq!(bytes(&text(near.as_bytes())), near.as_bytes());
        }
    }
}
