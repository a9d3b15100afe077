//! Migrations in code; the same statements make the schema on SQLite and on Postgres.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, binary, binary_null, integer, string, string_null, text,
};

/// All migrations, oldest first. A released one is never changed.
pub(super) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(FirstLight), Box::new(NodeLabels)]
    }
}

/// The first schema.
struct FirstLight;

impl MigrationName for FirstLight {
    fn name(&self) -> &'static str {
        "m20261121_000001_first_light"
    }
}

fn table(name: &'static str) -> TableCreateStatement {
    Table::create().table(Alias::new(name)).to_owned()
}

fn unique(table: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    index(table, columns).unique().to_owned()
}

fn index(table: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    let name = format!("ix_{table}_{}", columns.join("_"));
    let mut index = Index::create();
    index.name(name).table(Alias::new(table));
    for column in columns {
        index.col(Alias::new(*column));
    }
    index
}

fn references(
    table: &'static str,
    column: &'static str,
    target: &'static str,
    on_delete: ForeignKeyAction,
) -> ForeignKeyCreateStatement {
    ForeignKey::create()
        .name(format!("fk_{table}_{column}"))
        .from(Alias::new(table), Alias::new(column))
        .to(Alias::new(target), Alias::new("id"))
        .on_delete(on_delete)
        .to_owned()
}

fn tables_of_installation() -> Vec<TableCreateStatement> {
    vec![
        table("meta")
            .col(string("name").primary_key())
            .col(big_integer("value"))
            .to_owned(),
        table("secret")
            .col(string("name").primary_key())
            .col(binary("sealed"))
            .col(binary("public"))
            .col(big_integer("created_at"))
            .to_owned(),
        table("relay")
            .col(binary("id").primary_key())
            .col(string("name"))
            .col(string("owner"))
            .col(binary("identity_key"))
            .col(text("derp"))
            .col(text("stun"))
            .col(string("version"))
            .col(big_integer("created_at"))
            .col(big_integer_null("last_seen"))
            .col(big_integer("certificate_not_after"))
            .to_owned(),
        table("operator")
            .col(binary("id").primary_key())
            .col(string("name"))
            .col(binary("identity_key"))
            .col(big_integer("created_at"))
            .col(big_integer("certificate_not_after"))
            .col(big_integer_null("revoked_at"))
            .to_owned(),
        table("event")
            .col(big_integer("id").primary_key().auto_increment())
            .col(big_integer("time"))
            .col(string_null("network"))
            .col(string("kind"))
            .col(string("subject"))
            .col(text("detail"))
            .to_owned(),
        table("audit")
            .col(big_integer("seq").primary_key())
            .col(big_integer("time"))
            .col(string("actor"))
            .col(string("action"))
            .col(string("subject"))
            .col(text("before"))
            .col(text("after"))
            .col(binary("previous_hash"))
            .col(binary("hash"))
            .to_owned(),
    ]
}

fn tables_of_networks() -> Vec<TableCreateStatement> {
    let to_network = |table| references(table, "network_id", "network", ForeignKeyAction::Cascade);
    vec![
        table("network")
            .col(binary("id").primary_key())
            .col(string("name"))
            .col(big_integer("version"))
            .col(big_integer("trimmed"))
            .col(big_integer("created_at"))
            .to_owned(),
        table("token")
            .col(binary("id").primary_key())
            .col(binary_null("network_id"))
            .col(string("role"))
            .col(string("owner"))
            .col(integer("reusable"))
            .col(binary("secret_hash"))
            .col(big_integer("created_at"))
            .col(big_integer("expires_at"))
            .col(big_integer_null("revoked_at"))
            .col(integer("uses"))
            .foreign_key(&mut to_network("token"))
            .to_owned(),
        table("token_use")
            .col(binary("token_id"))
            .col(binary("identity_key"))
            .col(binary("subject"))
            .col(big_integer("used_at"))
            .primary_key(Index::create().col("token_id").col("identity_key"))
            .foreign_key(&mut references(
                "token_use",
                "token_id",
                "token",
                ForeignKeyAction::Cascade,
            ))
            .to_owned(),
        table("node")
            .col(binary("id").primary_key())
            .col(binary("network_id"))
            .col(string("name"))
            .col(string("role"))
            .col(string("owner"))
            .col(binary("identity_key"))
            .col(binary("wg_key"))
            .col(binary("disco_key"))
            .col(big_integer("overlay_v4"))
            .col(binary("overlay_v6"))
            .col(string("uptime_class"))
            .col(string("version"))
            .col(big_integer("created_at"))
            .col(big_integer_null("last_seen"))
            .col(big_integer("certificate_not_after"))
            .col(text("services"))
            .col(string("ssh_user"))
            .col(integer("ssh_via_loopback"))
            .col(binary_null("permit_hash"))
            .col(big_integer_null("permit_expires_at"))
            .col(big_integer("changed_version"))
            .foreign_key(&mut to_network("node"))
            .to_owned(),
        table("tombstone")
            .col(binary("id").primary_key())
            .col(binary_null("network_id"))
            .col(big_integer("version"))
            .col(big_integer("removed_at"))
            .to_owned(),
        table("host_key")
            .col(binary("node_id"))
            .col(string("line"))
            .col(integer("held"))
            .col(big_integer("seen_at"))
            .primary_key(Index::create().col("node_id").col("line"))
            .foreign_key(&mut references(
                "host_key",
                "node_id",
                "node",
                ForeignKeyAction::Cascade,
            ))
            .to_owned(),
    ]
}

fn indexes() -> Vec<IndexCreateStatement> {
    vec![
        unique("network", &["name"]),
        unique("node", &["network_id", "name"]),
        unique("node", &["identity_key"]),
        unique("node", &["wg_key"]),
        unique("node", &["disco_key"]),
        unique("node", &["overlay_v4"]),
        unique("node", &["overlay_v6"]),
        unique("relay", &["name"]),
        unique("relay", &["identity_key"]),
        unique("operator", &["identity_key"]),
        index("operator", &["name"]),
        index("token", &["network_id"]),
        index("tombstone", &["network_id"]),
        index("event", &["network"]),
    ]
}

#[expect(
    elided_lifetimes_in_paths,
    reason = "the trait's own signature elides it"
)]
#[async_trait::async_trait]
impl MigrationTrait for FirstLight {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in tables_of_installation()
            .into_iter()
            .chain(tables_of_networks())
        {
            manager.create_table(table).await?;
        }
        for index in indexes() {
            manager.create_index(index).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Labels of nodes.
struct NodeLabels;

impl MigrationName for NodeLabels {
    fn name(&self) -> &'static str {
        "m20261121_000002_node_labels"
    }
}

#[expect(
    elided_lifetimes_in_paths,
    reason = "the trait's own signature elides it"
)]
#[async_trait::async_trait]
impl MigrationTrait for NodeLabels {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let labels = Table::alter()
            .table(Alias::new("node"))
            .add_column(text("labels").default("{}"))
            .to_owned();
        manager.alter_table(labels).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
