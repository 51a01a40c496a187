//! Guests that do what the name of the object in question begins with: many behaviours, one component.

use super::Guest;
use crate::World;

/// Texts in the guest's memory.
const TEXTS: [(u32, &str); 9] = [
    (2200, "no thanks"),
    (2300, "FieldValueForbidden"),
    (2400, "data.k"),
    (2500, "not like this"),
    (2600, r#"[{"op":"add","path":"/metadata/labels","value":{"tier":"gold"}}]"#),
    (2700, "mind the gap"),
    (2800, r#"[{"op":"add","path":"/metadata/uid","value":"u"}]"#),
    (2900, r#"[{"op":"add","path":"/spec","value":{}}]"#),
    (3100, r#"[{"op":"add","path":"/metadata/annotations","value":{"seen":"gold"}}]"#),
];

/// `i32.store`s that put a text's place and length at an address.
fn put(at: u32, text: usize) -> String {
    let (address, text) = TEXTS[text];
    format!(
        "(i32.store (i32.const {at}) (i32.const {address})) (i32.store (i32.const {}) (i32.const {}))",
        at + 4,
        text.len()
    )
}

/// About a write, by the first letter of the object's name: `d` denies, `p` patches labels, `w` warns, `k` keeps what is to be deleted, `o`
/// denies what has an old object, `y` denies dry runs, `b` warns and denies, `z` adds an annotation once it sees `gold`. What is wrong: `i` patches the UID, `s`
/// adds a field that nobody knows, `t` traps, `l` never ends, `g` grows, `h` patches with 4 MB, `u` says what is no UTF-8. Others are allowed.
pub fn admission() -> Guest {
    let when = |letter: char, more: &str, then: &str| {
        let letter = letter as u32;
        format!("(if (i32.and (i32.eq (local.get $c) (i32.const {letter})) {more}) (then {then}))\n")
    };
    let (always, mutating) = ("(i32.const 1)", "(i32.eqz (i32.load8_u (local.get $in)))");
    let deny = format!(
        "(i32.store8 (i32.const 1024) (i32.const 1)) {} (i32.store (i32.const 1036) (i32.const 2048))
         (i32.store (i32.const 1040) (i32.const 1)) {} {} {} (return (i32.const 1024))",
        put(1028, 0),
        put(2048, 1),
        put(2056, 2),
        put(2064, 3),
    );
    let patch =
        |text| format!("(i32.store8 (i32.const 1044) (i32.const 1)) {} (return (i32.const 1024))", put(1048, text));
    let warning = format!(
        "(i32.store (i32.const 1056) (i32.const 2100)) (i32.store (i32.const 1060) (i32.const 1)) {}",
        put(2100, 5)
    );
    let warn = format!("{warning} (return (i32.const 1024))");
    let body = [
        "(local $c i32) (local.set $c (i32.load8_u (i32.load offset=52 (local.get $in))))".to_owned(),
        when('d', always, &deny),
        when('p', mutating, &patch(4)),
        when('w', always, &warn),
        when('b', always, &format!("{warning} {deny}")),
        when(
            'z',
            &format!(
                "(i32.and {mutating} (call $gold (i32.load offset=112 (local.get $in)) (i32.load offset=116 (local.get $in))))"
            ),
            &patch(8),
        ),
        // Deletions, and whatever has an old object.
        when('k', "(i32.eq (i32.load8_u offset=1 (local.get $in)) (i32.const 2))", &deny),
        when('o', "(i32.load8_u offset=120 (local.get $in))", &deny),
        // Dry runs.
        when('y', "(i32.load8_u offset=104 (local.get $in))", &deny),
        when('i', mutating, &patch(6)),
        when('s', mutating, &patch(7)),
        when('t', always, "unreachable"),
        when('l', always, "(loop $l (br $l))"),
        when(
            'g',
            always,
            "(loop $l (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable)) (br $l))",
        ),
        when(
            'h',
            mutating,
            "(i32.store8 (i32.const 1044) (i32.const 1)) (i32.store (i32.const 1048) (i32.const 0))
             (i32.store (i32.const 1052) (i32.const 60000)) (drop (memory.grow (i32.const 64)))
             (i32.store (i32.const 1052) (i32.const 4000000)) (return (i32.const 1024))",
        ),
        when(
            'u',
            always,
            "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store (i32.const 1028) (i32.const 3000))
             (i32.store (i32.const 1032) (i32.const 4)) (return (i32.const 1024))",
        ),
        "(i32.const 1024)".to_owned(),
    ];
    let texts = TEXTS.map(|(at, text)| format!("(data (i32.const {at}) {text:?})\n"));
    let invalid = "(data (i32.const 3000) \"\\ff\\fe\\ff\\fe\")";
    Guest::new(World::Admission, &body.concat()).extra(&(texts.concat() + invalid + GOLD))
}

/// Whether `gold` is in a text.
const GOLD: &str = "
  (func $gold (param $at i32) (param $length i32) (result i32) (local $end i32)
    (local.set $end (i32.sub (i32.add (local.get $at) (local.get $length)) (i32.const 4)))
    (block $done (loop $l
      (br_if $done (i32.gt_u (local.get $at) (local.get $end)))
      (if (i32.eq (i32.load (local.get $at)) (i32.const 0x646c6f67)) (then (return (i32.const 1))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $l)))
    (i32.const 0))";

/// Answers the same patch to every write that may still be changed.
pub fn patching(patch: &str) -> Guest {
    let body = format!(
        "(if (i32.eqz (i32.load8_u (local.get $in))) (then (i32.store8 (i32.const 1044) (i32.const 1))
           (i32.store (i32.const 1048) (i32.const 2200)) (i32.store (i32.const 1052) (i32.const {}))))
         (i32.const 1024)",
        patch.len()
    );
    Guest::new(World::Admission, &body).extra(&format!("(data (i32.const 2200) {patch:?})"))
}

/// About nodes, by the first letter of the pod's name: `r` rejects every node, `l` never ends, `x` answers nonsense; the others go anywhere.
pub fn scheduling() -> Guest {
    let body = r"
      (local $c i32) (local $n i32) (local $at i32) (local $out i32)
      (local.set $c (i32.load8_u (i32.load offset=8 (local.get $in))))
      (if (i32.eq (local.get $c) (i32.const 108)) (then (loop $l (br $l))))
      (local.set $n (i32.load offset=76 (local.get $in)))
      (local.set $out (i32.const 2048))
      (i32.store (i32.const 1024) (local.get $out))
      (i32.store offset=4 (i32.const 1024) (local.get $n))
      (i32.store offset=8 (i32.const 1024) (i32.const 2000))
      (i32.store offset=12 (i32.const 1024) (i32.const 1))
      (block $done (loop $l
        (br_if $done (i32.ge_u (local.get $at) (local.get $n)))
        (i32.store (i32.add (local.get $out) (i32.shl (local.get $at) (i32.const 2)))
          (select (i32.const -1)
            (select (i32.const 1000) (i32.const 50) (i32.eq (local.get $c) (i32.const 120)))
            (i32.eq (local.get $c) (i32.const 114))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $l)))
      (i32.const 1024)";
    // The list of reasons, and the reason.
    let data = r#"(data (i32.const 2000) "\d8\07\00\00\0b\00\00\00") (data (i32.const 2008) "no free GPU")"#;
    Guest::new(World::Scheduling, body).extra(data)
}
