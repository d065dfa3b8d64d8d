use proptest::prelude::*;

use super::*;

fn group(text: &str) -> Result<Group, String> {
    let file = File::parse(text).map_err(|mistake| mistake.to_string())?;
    file.group("data", false).map_err(|mistake| mistake.to_string())
}

#[test]
fn a_group_with_everything() {
    let text = "# all\nstate_dir = /s\nlock_timeout = 7\n[data]\r\nresources = a b\nfstype=ext4 # here\n\tmount =  /srv/x/ \n\
                options = noatime,commit=5\ncheck = full\nservices = one /two\naddress = 10.0.0.1/24@e0 fd00::1/64@e1\n\
                attach = hastd\nrole_timeout = 0\n[other]\nmount = nowhere\n";
    let file = File::parse(text).unwrap();
    assert_eq!(file.groups(), ["data", "other"]);
    assert_eq!(file.general().unwrap().state_dir, Path::new("/s"));
    let group = file.group("data", false).unwrap();
    assert_eq!(
        (group.resources, group.services),
        (vec!["a".into(), "b".into()], vec!["one".into(), "/two".into()])
    );
    let files =
        Content::Files { fstype: "ext4".into(), mount: "/srv/x/".into(), options: "noatime,commit=5".into() };
    assert_eq!((group.content, group.check, group.attach), (files, Check::Full, Attach::Hastd));
    assert_eq!(group.addresses.len(), 2);
    assert!(group.role_timeout > Duration::from_secs(1 << 30), "0 is without a limit");
    // A mistake in one group is no other one's.
    assert_eq!(
        file.group("other", false).unwrap_err().to_string(),
        "line 15: mount must be an absolute path, not 'nowhere'"
    );
}

#[test]
fn a_bare_resource_has_role_and_device_only() {
    let file =
        File::parse("[data]\nfstype = ext4\nmount = /m\nservices = x\nattach = none\naddress = 10.0.0.1@e\n");
    let group = file.unwrap().group("data", true).unwrap();
    assert_eq!((group.content, group.attach), (Content::Nothing, Attach::None));
    assert!(group.services.is_empty() && group.addresses.is_empty());
    assert_eq!(File::default().group("x", true).unwrap().resources, ["x"]);
}

#[test]
fn mistakes_name_their_line() {
    for (text, told) in [
        ("mount = relative", "line 2: mount must be an absolute path"),
        ("mount = /a;b", "line 2: mount has a character that is not allowed in a path"),
        ("mount = /a b", "not allowed in a path"),
        ("mount = /", "root directory"),
        ("mount = //", "root directory"),
        ("services = $(reboot)", "line 2: services has a character that is not allowed"),
        ("services = --now x", "looks like an option"),
        ("resources = -f", "looks like an option"),
        ("node = a", "before the first group"),
        ("role_timeout = soon", "number of seconds"),
        ("role_timeout = +5", "number of seconds"),
        ("role_timeout =", "number of seconds"),
        ("role_timeout = 99999999999", "number of seconds"),
        ("colour = red", "no setting 'colour'"),
        ("check = maybe", "check must be preen, full or never, not 'maybe'"),
        ("attach = it", "attach must be auto, hastd, nbd, fuse or none, not 'it'"),
        ("wait_secondary = 1", "wait_secondary must be auto, yes or no, not '1'"),
        ("address = 10.0.0.1", "address must be like"),
        ("address = 10.0.0.1/24@eth0, 10.0.0.2/24@eth0", "not allowed"),
        ("[data]", "line 2: the group 'data' is here twice"),
        ("[a b]", "a group's name has"),
        ("[x] # comment", "neither [group]"),
        ("nonsense", "line 2: neither [group] nor 'setting = value': nonsense"),
        ("fstype = zfs", "line end: the group 'data' has zfs, but no pool"),
        ("fstype = ext4", "line end: the group 'data' has a file system, but no mount"),
        ("fstype = ext4 xfs", "one word"),
        ("options = a\u{7}b", "control character"),
    ] {
        let mistake = group(&format!("[data]\n{text}\n")).unwrap_err();
        assert!(mistake.contains(told), "{text}: {mistake}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(?s).{0,200}", name in ".{0,5}") {
        if let Ok(file) = File::parse(&text) {
            let _ = file.general();
            let _ = file.group(&name, false);
            for group in file.groups() {
                let _ = file.group(group, true);
            }
        }
    }

    #[test]
    fn odd_settings_are_refused_or_read(key in "[a-z_]{3,12}", value in "[ -~\t]{0,30}") {
        let _ = group(&format!("[data]\n{key} = {value}\n"));
        for key in ["mount", "services", "address", "resources", "role_timeout", "pool"] {
            if let Ok(group) = group(&format!("[data]\n{key} = {value}\n")) {
                for word in group.services.iter().chain(&group.resources) {
                    prop_assert!(!word.starts_with('-') && !word.contains(char::is_whitespace));
                }
            }
        }
    }
}
