-- What was settled after a place in the order of settling.
--
-- ARGV[4]  the place, or empty
-- ARGV[5]  the most entries, decimal
-- Returns  'ok', the place of the last one looked at or '', then five values (`entries.lua`) for each
-- O(log N + n) for n entries
local reply, most = { 'ok', '' }, tonumber(ARGV[5])
local from = ARGV[4] == '' and '-' or '(' .. ARGV[4] .. 'g'
repeat
  local page, ids = call('ZRANGE', PREFIX .. 'settled', from, '+', 'BYLEX', 'LIMIT', 0, most), {}
  for i, member in ipairs(page) do
    ids[i] = sub(member, 17)
    if #member ~= 32 then stop(PREFIX .. 'settled has another member') end
  end
  for i, rec in ipairs(values_of('requests', ids)) do describe(reply, ids[i], rec) end
  if #page > 0 then
    reply[2] = sub(page[#page], 1, 16)
    from = '(' .. page[#page]
  end
until #reply > 2 or #page == 0
return answer(reply)
