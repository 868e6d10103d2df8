"""What is at fault right now: findings; what code workers have and lack, and who waits for it; schedules that are put aside."""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.execute(
        """
        create table findings (
            kind text not null,
            tenant text not null default 'default',
            subject text not null,
            message text not null,
            detail jsonb,
            times bigint not null default 1,
            since timestamptz not null default now(),
            seen_at timestamptz not null default now(),
            told_at timestamptz,
            primary key (kind, tenant, subject)
        );
        alter table findings enable row level security;
        create policy mine on findings for all using (tenant = current_setting('orchestrator.tenant', true))
            with check (tenant = current_setting('orchestrator.tenant', true));
        alter table workers add column left_out jsonb, add column code text[];
        alter table branches add column lacks text, add column lacking_since timestamptz;
        create index branches_lacking on branches (lacks) where state = 'parked' and lacks is not null;
        alter table schedules add column failures integer not null default 0, add column retry_at timestamptz;
        """
    )


def downgrade() -> None:
    op.execute(
        """
        drop table findings;
        alter table workers drop column left_out, drop column code;
        alter table branches drop column lacks, drop column lacking_since;
        alter table schedules drop column failures, drop column retry_at;
        """
    )
