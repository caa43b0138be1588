-- The items whose kinds count: those of the range's impressions and of what its users found positive.
select item from in_range
union
select item from user_facts where positive > 0
