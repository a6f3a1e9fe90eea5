//! One file of Rust: what it defines and what it names.

use proc_macro2::{TokenStream, TokenTree};
use std::collections::BTreeSet;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, Token, UseTree};

/// A module's path from the crate's root, which is empty.
pub(super) type ModulePath = Vec<String>;

/// The segments of a path as it is written, such as `["super", "error", "StoreError"]`.
pub(super) type WrittenPath = Vec<String>;

/// A module: a file, or `mod name { … }` in one.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub module: ModulePath,
    /// What it defines.
    pub items: BTreeSet<String>,
    /// Its `use` items, a name each: the name here, and what it stands for.
    pub aliases: Vec<(String, WrittenPath)>,
    /// What it imports all names of.
    pub globs: Vec<WrittenPath>,
    /// Every other path of two segments or more.
    pub paths: BTreeSet<WrittenPath>,
}

/// What was found in a file.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// The file's own module first.
    pub scopes: Vec<Scope>,
    /// Modules in files of their own that only tests have.
    pub test_modules: Vec<ModulePath>,
}

impl Source {
    /// Reads the text of the file that is `module`. What only tests have is left out.
    ///
    /// # Errors
    /// If the text is no Rust.
    pub fn parse(module: ModulePath, text: &str) -> syn::Result<Self> {
        let file = syn::parse_file(text)?;
        let scopes = vec![Scope { module, ..Scope::default() }];
        let mut reader = Reader { source: Source { scopes, test_modules: Vec::new() }, current: 0 };
        for item in &file.items {
            reader.visit_item(item);
        }
        Ok(reader.source)
    }
}

struct Reader {
    source: Source,
    /// The scope that is being read.
    current: usize,
}

impl Reader {
    fn scope(&mut self) -> &mut Scope {
        &mut self.source.scopes[self.current]
    }

    fn add_use(&mut self, before: &WrittenPath, tree: &UseTree) {
        let with = |name: &syn::Ident| {
            let mut path = before.clone();
            // `use a::b::{self}` names b itself.
            if path.is_empty() || name != "self" {
                path.push(name.to_string());
            }
            path
        };
        match tree {
            UseTree::Path(tree) => self.add_use(&with(&tree.ident), &tree.tree),
            UseTree::Name(tree) => {
                let path = with(&tree.ident);
                let name = path.last().cloned().unwrap_or_default();
                self.scope().aliases.push((name, path));
            }
            UseTree::Rename(tree) => {
                let path = with(&tree.ident);
                self.scope().aliases.push((tree.rename.to_string(), path));
            }
            UseTree::Glob(_) => self.scope().globs.push(before.clone()),
            UseTree::Group(tree) => tree.items.iter().for_each(|tree| self.add_use(before, tree)),
        }
    }

    /// Paths in the arguments of a macro, which may be anything that looks like one.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path = WrittenPath::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.add_path(std::mem::take(&mut path));
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => colons += 1,
                other => {
                    self.add_path(std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.add_tokens(group.stream());
                    }
                }
            }
        }
        self.add_path(path);
    }

    fn add_path(&mut self, path: WrittenPath) {
        if path.len() > 1 {
            self.scope().paths.insert(path);
        }
    }
}

impl<'a> Visit<'a> for Reader {
    fn visit_item(&mut self, item: &'a Item) {
        let (attributes, name) = describe(item);
        if is_test(attributes) {
            if let Item::Mod(module) = item
                && module.content.is_none()
            {
                let mut path = self.scope().module.clone();
                path.push(module.ident.to_string());
                self.source.test_modules.push(path);
            }
            return;
        }
        match item {
            Item::Use(item) => self.add_use(&WrittenPath::new(), &item.tree),
            Item::Mod(item) => {
                let Some((_, items)) = &item.content else { return };
                let mut module = self.scope().module.clone();
                module.push(item.ident.to_string());
                let outer = self.current;
                self.current = self.source.scopes.len();
                self.source.scopes.push(Scope { module, ..Scope::default() });
                items.iter().for_each(|item| self.visit_item(item));
                self.current = outer;
            }
            item => {
                if let Some(name) = name {
                    self.scope().items.insert(name);
                }
                visit::visit_item(self, item);
            }
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        if !is_test(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_impl_item_const(&mut self, constant: &'a syn::ImplItemConst) {
        if !is_test(&constant.attrs) {
            visit::visit_impl_item_const(self, constant);
        }
    }

    fn visit_trait_item_fn(&mut self, function: &'a syn::TraitItemFn) {
        if !is_test(&function.attrs) {
            visit::visit_trait_item_fn(self, function);
        }
    }

    fn visit_field(&mut self, field: &'a syn::Field) {
        if !is_test(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'a syn::Variant) {
        if !is_test(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_local(&mut self, local: &'a syn::Local) {
        if !is_test(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        self.add_path(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        self.add_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    // A derive's attributes may hold code, such as the arguments of an error's message.
    fn visit_attribute(&mut self, attribute: &'a Attribute) {
        if let Meta::List(list) = &attribute.meta
            && !list.path.is_ident("cfg")
        {
            self.add_tokens(list.tokens.clone());
        }
    }
}

/// An item's attributes, and the name that it defines in its module.
fn describe(item: &Item) -> (&[Attribute], Option<String>) {
    let (attributes, name): (&[Attribute], _) = match item {
        Item::Const(item) => (&item.attrs, Some(&item.ident)),
        Item::Enum(item) => (&item.attrs, Some(&item.ident)),
        Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
        Item::Static(item) => (&item.attrs, Some(&item.ident)),
        Item::Struct(item) => (&item.attrs, Some(&item.ident)),
        Item::Trait(item) => (&item.attrs, Some(&item.ident)),
        Item::TraitAlias(item) => (&item.attrs, Some(&item.ident)),
        Item::Type(item) => (&item.attrs, Some(&item.ident)),
        Item::Union(item) => (&item.attrs, Some(&item.ident)),
        Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
        Item::ExternCrate(item) => (&item.attrs, None),
        Item::ForeignMod(item) => (&item.attrs, None),
        Item::Impl(item) => (&item.attrs, None),
        Item::Mod(item) => (&item.attrs, None),
        Item::Use(item) => (&item.attrs, None),
        _ => (&[], None),
    };
    (attributes, name.map(ToString::to_string))
}

/// Whether code is compiled for tests only: `#[test]`, or a `#[cfg]` that does not hold without `test`.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) if list.path.is_ident("cfg") => {
            list.parse_args::<Meta>().is_ok_and(|condition| needs_test(&condition))
        }
        _ => false,
    })
}

fn needs_test(condition: &Meta) -> bool {
    let parts = |list: &syn::MetaList| {
        let parts = list.parse_args_with(syn::punctuated::Punctuated::<Meta, Token![,]>::parse_terminated);
        parts.map(|parts| parts.into_iter().collect::<Vec<_>>()).unwrap_or_default()
    };
    match condition {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) if list.path.is_ident("all") => parts(list).iter().any(needs_test),
        Meta::List(list) if list.path.is_ident("any") => {
            let parts = parts(list);
            !parts.is_empty() && parts.iter().all(needs_test)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse(vec!["here".into()], text).expect("Rust")
    }

    fn path(text: &str) -> WrittenPath {
        text.split("::").map(String::from).collect()
    }

    #[test]
    fn uses_are_read_name_by_name() {
        let source = parse("use crate::{a::{self, B, c as d}, e::*}; use super::F;");
        let [scope] = &source.scopes[..] else { panic!("one scope") };
        let aliases: Vec<_> =
            scope.aliases.iter().map(|(name, path)| (name.as_str(), path.join("::"))).collect();
        let expected = [("a", "crate::a"), ("B", "crate::a::B"), ("d", "crate::a::c"), ("F", "super::F")];
        assert_eq!(aliases, expected.map(|(name, path)| (name, path.to_string())));
        assert_eq!(scope.globs, [path("crate::e")]);
    }

    #[test]
    fn paths_are_found_in_code_types_and_macros() {
        let source = parse(
            "struct S(crate::a::A); fn f() -> super::b::B { vec![crate::c::C, (d::D { e: f })]; g::h::<i::J>() } \
             registry! { \"x\" => x::Config, \"…\"; } \
             #[cfg(a::b)] enum E { #[error(\"{0} {}\", crate::k::K)] A(u8) } /// [`crate::l::L`]\n type T = u8;",
        );
        let paths: Vec<_> = source.scopes[0].paths.iter().map(|path| path.join("::")).collect();
        assert_eq!(
            paths,
            ["crate::a::A", "crate::c::C", "crate::k::K", "d::D", "g::h", "i::J", "super::b::B", "x::Config"]
        );
        assert!(source.scopes[0].items.iter().eq(["E", "S", "T", "f"]));
    }

    #[test]
    fn what_only_tests_have_is_left_out() {
        let source = parse(
            "#[cfg(test)] use crate::a::A; #[cfg(test)] mod tests; #[cfg(all(test, unix))] mod more { use crate::b::B; } \
             #[cfg(test)] fn f() { crate::c::d() } impl S { #[cfg(test)] fn g() { crate::e::f() } } \
             #[cfg(any(test, unix))] use crate::kept::K; #[cfg(not(test))] use crate::kept::L;",
        );
        assert_eq!(source.test_modules, [path("here::tests")]);
        let [scope] = &source.scopes[..] else { panic!("one scope") };
        let names: Vec<_> = scope.aliases.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, scope.paths.len(), scope.items.len()), (vec!["K", "L"], 0, 0));
    }

    #[test]
    fn a_module_within_a_file_has_a_scope_of_its_own() {
        let source = parse("mod inner { use super::X; } use crate::Y;");
        let modules: Vec<_> = source.scopes.iter().map(|scope| scope.module.join("::")).collect();
        assert_eq!(modules, ["here", "here::inner"]);
        assert_eq!(source.scopes[1].aliases, [("X".to_string(), path("super::X"))]);
        assert_eq!(source.scopes[0].aliases, [("Y".to_string(), path("crate::Y"))]);
    }
}
