//! Who uses a provider of GEOM, and who serves it, from what the kernel tells of all of it in `kern.geom.confxml` (FreeBSD).
//!
//! The kernel writes one element a line, and that is all that is relied on: whatever is not found is left out.

use crate::Seen;

/// Who uses a provider.
#[derive(Debug, PartialEq, Eq)]
pub struct User<'a> {
    /// What kind of user: `VFS`, `PART`, `DEV` for whoever has the node in /dev open.
    pub class: &'a str,
    /// What that one is called.
    pub geom: &'a str,
}

/// The users of the provider `name` of the class `GATE` that have it open.
#[must_use]
pub fn users<'a>(confxml: &'a str, name: &str) -> Vec<User<'a>> {
    let Some(provider) = elements(confxml).find_map(|(place, element)| {
        (place.class == "GATE" && element.name() == Some(name)).then_some(place.provider?)
    }) else {
        return Vec::new();
    };
    let mut used = None;
    let mut found = Vec::new();
    for (place, element) in elements(confxml) {
        if !place.consumer {
            used = None;
        } else if let Some(reference) = element.attribute("<provider ref=\"") {
            used = Some(reference);
        } else if used == Some(provider)
            && element.text("mode").is_some_and(|mode| mode.bytes().any(|byte| matches!(byte, b'1'..=b'9')))
        {
            found.push(User { class: place.class, geom: place.geom });
        }
    }
    found
}

/// What there is of the device `name` of the class `GATE`. Its info was given without `&`, `<` and `>`, or it is not found.
#[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
pub(crate) fn seen(confxml: &str, name: &str) -> Option<Seen> {
    let mut place = Place::default();
    let mut seen: Option<Seen> = None;
    for element in confxml.lines().map(|line| Element(line.trim())) {
        place.enter(element);
        if place.class != "GATE" || !place.in_geom || place.geom != name {
            continue;
        }
        let seen = seen.get_or_insert_default();
        seen.reads |= place.consumer;
        if let Some(info) = element.text("info").filter(|_| place.in_config) {
            info.clone_into(&mut seen.info);
        }
    }
    seen
}

/// Inside of what an element is.
#[derive(Clone, Copy, Debug, Default)]
struct Place<'a> {
    class: &'a str,
    geom: &'a str,
    provider: Option<&'a str>,
    consumer: bool,
    in_geom: bool,
    in_config: bool,
}

/// A line.
#[derive(Clone, Copy, Debug)]
struct Element<'a>(&'a str);

impl<'a> Element<'a> {
    fn text(self, tag: &str) -> Option<&'a str> {
        let text = self.0.strip_prefix('<')?.strip_prefix(tag)?.strip_prefix('>')?;
        text.strip_suffix('>')?.strip_suffix(tag)?.strip_suffix("</")
    }

    fn name(self) -> Option<&'a str> {
        self.text("name")
    }

    fn attribute(self, before: &str) -> Option<&'a str> {
        self.0.strip_prefix(before)?.split('"').next()
    }
}

impl<'a> Place<'a> {
    /// Takes in the next line. True if it says something else, outside of the classes' own configuration.
    fn enter(&mut self, element: Element<'a>) -> bool {
        match element.0 {
            "<config>" => self.in_config = true,
            "</config>" => self.in_config = false,
            _ if self.in_config => {}
            "</class>" | "</geom>" => self.in_geom = false,
            "</provider>" => self.provider = None,
            "</consumer>" => self.consumer = false,
            tag if tag.starts_with("<geom id=") => self.in_geom = true,
            tag if tag.starts_with("<consumer id=") => self.consumer = true,
            tag if tag.starts_with("<provider id=") => self.provider = element.attribute("<provider id=\""),
            _ => {
                if let Some(name) = element.name() {
                    match (self.in_geom, self.provider) {
                        (false, _) => self.class = name,
                        (true, None) => self.geom = name,
                        (true, Some(_)) => {}
                    }
                }
                return true;
            }
        }
        false
    }
}

/// All elements that say something, each with its place; the classes' own configuration is left out.
fn elements(confxml: &str) -> impl Iterator<Item = (Place<'_>, Element<'_>)> {
    let mut place = Place::default();
    confxml
        .lines()
        .map(|line| Element(line.trim()))
        .filter_map(move |element| place.enter(element).then_some((place, element)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A geom with one consumer of the provider 0xa0.
    fn consumer(class: &str, geom: &str, provider: &str, mode: &str) -> String {
        format!(
            "  <class id=\"0x1\">\n    <name>{class}</name>\n    <geom id=\"0x2\">\n      <class ref=\"0x1\"/>\n      \
             <name>{geom}</name>\n      <rank>2</rank>\n      <config>\n      <name>hast/disk0</name>\n      \
             </config>\n\t<consumer id=\"0x3\">\n\t  <geom ref=\"0x2\"/>\n\t  <provider ref=\"{provider}\"/>\n\t  \
             <mode>{mode}</mode>\n\t</consumer>\n    </geom>\n  </class>\n"
        )
    }

    fn provider(class: &str, name: &str, id: &str) -> String {
        format!(
            "  <class id=\"0x5\">\n    <name>{class}</name>\n    <geom id=\"0x6\">\n      <class ref=\"0x5\"/>\n      \
             <name>{name}</name>\n      <rank>1</rank>\n\t<config>\n\t  <timeout>0</timeout>\n\t  \
             <info>{class} {id}</info>\n\t</config>\n\t<provider id=\"{id}\">\n\t  <geom ref=\"0x6\"/>\n\t  \
             <mode>r1w1e1</mode>\n\t  <name>{name}</name>\n\t  <mediasize>1024</mediasize>\n\t</provider>\n    \
             </geom>\n  </class>\n"
        )
    }

    #[test]
    fn what_the_kernel_reads_itself_shows() {
        let text = |config: &str, consumer: &str| {
            format!(
                "<class id=\"1\">\n<name>GATE</name>\n<geom id=\"2\">\n<name>hast/disk0</name>\n<config>\n{config}<info>i</info>\n\
                 </config>\n{consumer}<provider id=\"3\">\n<name>hast/disk0</name>\n</provider>\n</geom>\n\
                 <geom id=\"4\">\n<name>other</name>\n<consumer id=\"5\">\n</consumer>\n</geom>\n</class>\n"
            )
        };
        let (provider, consumer) =
            ("<read_provider>md0</read_provider>\n", "<consumer id=\"9\">\n</consumer>\n");
        let reads = |text: &str| seen(text, "hast/disk0").unwrap().reads;
        assert!(!reads(&text("", "")));
        assert!(reads(&text("", consumer)), "what has begun is under way");
        assert!(reads(&text(provider, consumer)));
        assert_eq!(seen(&text(provider, ""), "other"), Some(Seen { info: String::new(), reads: true }));
    }

    #[test]
    fn users_are_found_through_the_provider() {
        let text = [
            "<mesh>\n".to_owned(),
            consumer("VFS", "ffs.hast/disk0", "0xa0", "r1w1e1"),
            consumer("DEV", "hast/disk0", "0xa0", "r0w0e0"),
            consumer("ELI", "hast/disk1.eli", "0xa1", "r1w1e1"),
            provider("MD", "hast/disk0", "0xaf"),
            provider("GATE", "hast/disk1", "0xa1"),
            provider("GATE", "hast/disk0", "0xa0"),
            consumer("PART", "hast/disk0", "0xa0", "r10w0e0"),
            "</mesh>\n".to_owned(),
        ]
        .concat();
        let user = |class, geom| User { class, geom };
        assert_eq!(users(&text, "hast/disk0"), [user("VFS", "ffs.hast/disk0"), user("PART", "hast/disk0")]);
        assert_eq!(users(&text, "hast/disk1"), [user("ELI", "hast/disk1.eli")]);
        assert_eq!(users(&text, "hast/disk2"), []);
        let device = |info: &str| Some(Seen { info: info.to_owned(), reads: false });
        assert_eq!(seen(&text, "hast/disk0"), device("GATE 0xa0"));
        assert_eq!(seen(&text, "hast/disk1"), device("GATE 0xa1"));
        assert_eq!(seen(&text, "hast/disk2"), None);
        for end in 0..text.len() {
            let _ = (users(&text[..end], "hast/disk0"), seen(&text[..end], "hast/disk0"));
        }
        assert_eq!(users("", "hast/disk0"), []);
    }
}
