-- drop_pieces(record): remove the pieces of large samples that stand before `data`.
local function drop_pieces(record)
  local index = 0
  while redis.call('HDEL', record, 'p:' .. index) == 1 do index = index + 1 end
end
