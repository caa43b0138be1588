-- Every table and view of the results, with its columns, their types and what they mean.
with relations as (
    select table_name, comment, false as is_view from duckdb_tables() where database_name = current_database()
    union all
    select view_name, comment, true from duckdb_views() where database_name = current_database() and not internal
)
select
    relations.table_name as relation,
    if(relations.is_view, 'view', 'table') as kind,
    relations.comment as holds,
    columns.column_name as name,
    columns.data_type as type,
    columns.comment as meaning
from relations
inner join duckdb_columns() as columns
    on columns.table_name = relations.table_name and columns.database_name = current_database()
order by relations.table_name, columns.column_index
