//! The examples run, and print what they are there to show.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "../examples/mirror.rs"]
mod mirror;

#[test]
fn mirror_draws_what_a_device_sees() {
    let mut text = Vec::new();
    mirror::run(&mut text).expect("works");
    let text = String::from_utf8_lossy(&text);
    let pictures = [
        "untouched:           ................",
        "six pages written:   wwwwww..........",
        "device maps eight:   wwwwww00........",
        "the device's sum is 21",
        "3 taken out:         ...www00........",
        "device maps again:   wwwwww00........",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), pictures);
}
